//! The xenstore protocol: a sans-IO codec and client for no_std.
