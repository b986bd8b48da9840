//! How fast a disk may go: a token bucket for requests and one for bytes.

use std::time::{Duration, Instant};

/// What a disk may do in a second; 0 is without a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowance {
    /// Requests.
    pub requests: u64,
    /// Bytes.
    pub bytes: u64,
}

/// The buckets of one queue. Each holds a tenth of a second's worth at most, and what a request takes out
/// beyond that is paid back before the next one.
#[derive(Clone, Debug)]
pub struct Rate {
    requests: Bucket,
    bytes: Bucket,
    filled: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    per_second: f64,
    tokens: f64,
}

impl Bucket {
    fn new(per_second: u64) -> Bucket {
        let per_second = per_second as f64;
        Bucket {
            per_second,
            tokens: per_second / 10.0,
        }
    }

    fn limits(&self) -> bool {
        self.per_second > 0.0
    }

    fn fill(&mut self, time: Duration) {
        let more = self.tokens + self.per_second * time.as_secs_f64();
        self.tokens = more.min((self.per_second / 10.0).max(1.0));
    }

    fn empty(&self) -> bool {
        self.limits() && self.tokens < 1.0
    }

    fn wait(&self) -> f64 {
        if self.empty() {
            (1.0 - self.tokens) / self.per_second
        } else {
            0.0
        }
    }
}

impl Rate {
    /// Buckets, full.
    pub fn new(allowance: Allowance) -> Rate {
        Rate {
            requests: Bucket::new(allowance.requests),
            bytes: Bucket::new(allowance.bytes),
            filled: None,
        }
    }

    fn limits(&self) -> bool {
        self.requests.limits() || self.bytes.limits()
    }

    /// Whether a request may be taken now.
    pub fn allows(&mut self) -> bool {
        !self.limits() || self.allows_at(Instant::now())
    }

    fn allows_at(&mut self, now: Instant) -> bool {
        let time = self.filled.map_or(Duration::ZERO, |then| now - then);
        self.filled = Some(now);
        self.requests.fill(time);
        self.bytes.fill(time);
        !self.requests.empty() && !self.bytes.empty()
    }

    /// A request of so many bytes was taken.
    pub fn spend(&mut self, bytes: usize) {
        if self.limits() {
            self.requests.tokens -= 1.0;
            self.bytes.tokens -= bytes as f64;
        }
    }

    /// How long until a request may be taken; `None` if it may be now.
    pub fn wait(&self) -> Option<Duration> {
        let wait = self.requests.wait().max(self.bytes.wait());
        let least = Duration::from_micros(50);
        (self.limits() && wait > 0.0).then(|| Duration::from_secs_f64(wait) + least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many requests of `len` bytes are taken in ten seconds by one who always has more.
    fn in_ten_seconds(allowance: Allowance, len: usize) -> u64 {
        let mut rate = Rate::new(allowance);
        let start = Instant::now();
        let (mut now, mut count) = (start, 0);
        while now < start + Duration::from_secs(10) && count < 1_000_000 {
            if rate.allows_at(now) {
                rate.spend(len);
                count += 1;
            } else {
                now += rate.wait().expect("a time to wait");
            }
        }
        count
    }

    #[test]
    fn what_passes() {
        let near = |allowance, len, expected: u64| {
            let count = in_ten_seconds(allowance, len);
            let range = expected * 98 / 100..=expected * 103 / 100 + 1;
            assert!(range.contains(&count), "{count}, not {expected}");
        };
        let none = Allowance::default();
        near(none, 4096, 1_000_000);
        let requests = Allowance {
            requests: 100,
            ..none
        };
        near(requests, 4096, 1000);
        let bytes = Allowance {
            bytes: 1 << 20,
            ..none
        };
        near(bytes, 4096, 2560);
        // One request is more than a bucket holds.
        near(bytes, 1 << 20, 10);
        near(
            Allowance {
                requests: 3,
                ..none
            },
            0,
            30,
        );
    }
}
