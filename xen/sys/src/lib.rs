//! Xen's public ABI, one module per public header.
