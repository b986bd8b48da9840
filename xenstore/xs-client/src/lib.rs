//! A store client for dom0: unix socket and /dev/xen/xenbus.
