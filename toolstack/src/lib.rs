//! The toolstack: configuration, builder, domains, devices, console daemon, supervisor.
