//! The contracts between logic and the world it runs in: grants, events, store, domain control, clock.
