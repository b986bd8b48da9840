//! The block backend: disk images and block devices for PV guests.
