//! What the kernel gives a store daemon: dom0's own ring and its event channel.

use std::fs;
use std::os::fd::AsFd;

use xen_hal::Result;
use xen_sys::{Errno, Port};

use crate::abi;
use crate::device;
use crate::mapping::{ForeignMapping, Mapping};

const XENBUS_BACKEND: &str = "/dev/xen/xenbus_backend";
const XSD_KVA: &str = "/proc/xen/xsd_kva";
const XSD_PORT: &str = "/proc/xen/xsd_port";

/// The kernel's end of dom0's store connection.
#[derive(Debug)]
pub struct StoreNode {
    /// The ring's page (`struct xenstore_domain_interface`), for the daemon's end of a byte ring.
    pub page: ForeignMapping,
    /// The kernel's port, to be bound with `bind_interdomain(DomId::DOM0, port)`.
    pub port: Port,
}

impl StoreNode {
    /// Maps the ring and asks for the port: through /dev/xen/xenbus_backend, or /proc/xen where that
    /// is missing.
    pub fn open() -> Result<StoreNode> {
        match StoreNode::from_device() {
            Ok(node) => Ok(node),
            Err(error) => StoreNode::from_proc().map_err(|_| error),
        }
    }

    fn from_device() -> Result<StoreNode> {
        let file = device::open(XENBUS_BACKEND, 0)?;
        // SAFETY: this ioctl takes no argument.
        let port = unsafe {
            device::ioctl(
                file.as_fd(),
                abi::XENBUS_BACKEND_EVTCHN,
                std::ptr::null_mut(),
            )
        }
        .map_err(|errno| device::system("IOCTL_XENBUS_BACKEND_EVTCHN", XENBUS_BACKEND, errno))?;
        let page = Mapping::new(file.as_fd(), 1, 0, true)
            .map_err(|errno| device::system("mmap", XENBUS_BACKEND, errno))?;
        Ok(StoreNode {
            page: ForeignMapping(page),
            port: Port(port),
        })
    }

    fn from_proc() -> Result<StoreNode> {
        let file = device::open(XSD_KVA, 0)?;
        let page = Mapping::new(file.as_fd(), 1, 0, true)
            .map_err(|errno| device::system("mmap", XSD_KVA, errno))?;
        let text = fs::read_to_string(XSD_PORT)
            .map_err(|error| device::system("read", XSD_PORT, device::errno(&error)))?;
        let port = text
            .trim()
            .parse()
            .map_err(|_| device::system("parse", XSD_PORT, Errno::EINVAL))?;
        Ok(StoreNode {
            page: ForeignMapping(page),
            port: Port(port),
        })
    }
}
