//! Domains, grants, events and a clock in one process, with a seeded schedule and faults on demand.
