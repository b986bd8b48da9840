//! io/ring.h: offsets in a ring's first page. The rings themselves are xen-ring's.

/// `req_prod`: next request that the front end makes.
pub const REQ_PROD: usize = 0;
/// `req_event`: the back end wants an event at this request.
pub const REQ_EVENT: usize = 4;
/// `rsp_prod`: next response that the back end makes.
pub const RSP_PROD: usize = 8;
/// `rsp_event`: the front end wants an event at this response.
pub const RSP_EVENT: usize = 12;
/// The first slot.
pub const SLOTS: usize = 64;
