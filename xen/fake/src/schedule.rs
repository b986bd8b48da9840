//! Who steps next, picked by a seed: the same seed gives the same run.

use std::fmt;

/// A stream of numbers made from a seed (SplitMix64), and the scheduler that draws from it.
#[derive(Clone, Debug)]
pub struct Schedule {
    seed: u64,
    state: u64,
}

/// What an actor did when it was let run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Something; others may have work now.
    Progress,
    /// Nothing: it waits for others.
    Idle,
    /// It has reached its end and is not let run again.
    Done,
}

/// Something that runs in steps: a driver, a backend, the store, the test itself.
pub struct Actor<'a> {
    name: &'static str,
    step: Box<dyn FnMut() -> Step + 'a>,
    /// Whether the run waits for its end.
    required: bool,
}

impl<'a> Actor<'a> {
    /// An actor that the run waits for.
    pub fn new(name: &'static str, step: impl FnMut() -> Step + 'a) -> Self {
        Actor {
            name,
            step: Box::new(step),
            required: true,
        }
    }

    /// An actor that serves others; the run ends without it.
    pub fn server(name: &'static str, step: impl FnMut() -> Step + 'a) -> Self {
        Actor {
            required: false,
            ..Actor::new(name, step)
        }
    }
}

/// A run that did not come to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// The schedule's seed.
    pub seed: u64,
    /// Steps taken.
    pub steps: usize,
    /// Whether nobody had anything to do any more (else the limit was reached).
    pub idle: bool,
    /// Who had not ended.
    pub waiting: Vec<&'static str>,
    /// The names of the last actors that made progress, oldest first.
    pub last: Vec<&'static str>,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = if self.idle {
            "nobody has work"
        } else {
            "the limit of steps is reached"
        };
        write!(
            f,
            "seed {}: stuck after {} steps ({why}); waiting: {}; last progress by: {}",
            self.seed,
            self.steps,
            self.waiting.join(", "),
            self.last.join(", ")
        )
    }
}

impl std::error::Error for Stuck {}

/// How many names [`Stuck::last`] holds at most.
const TRACE: usize = 24;

impl Schedule {
    /// The schedule of this seed.
    pub fn new(seed: u64) -> Self {
        Schedule { seed, state: seed }
    }

    /// The seed, for messages.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `below`, which is not 0.
    pub fn pick(&mut self, below: usize) -> usize {
        (self.next_u64() % below as u64) as usize
    }

    /// True `num` times out of `den`.
    pub fn chance(&mut self, num: usize, den: usize) -> bool {
        self.pick(den) < num
    }

    /// Fills `to` with the schedule's numbers.
    pub fn fill(&mut self, to: &mut [u8]) {
        for piece in to.chunks_mut(8) {
            piece.copy_from_slice(&self.next_u64().to_le_bytes()[..piece.len()]);
        }
    }

    /// Lets the actors run, one at a time in the seed's order, until all required ones are done. Ends
    /// with an error when all are idle, or after `limit` steps.
    pub fn run(&mut self, actors: &mut [Actor<'_>], limit: usize) -> Result<usize, Stuck> {
        let mut running: Vec<usize> = (0..actors.len()).collect();
        // Actors that were idle since somebody last made progress.
        let mut idle = vec![false; actors.len()];
        let mut last: Vec<&'static str> = Vec::new();
        for steps in 0..limit {
            if !running.iter().any(|&at| actors[at].required) {
                return Ok(steps);
            }
            if running.iter().all(|&at| idle[at]) {
                return Err(self.stuck(actors, &running, steps, true, last));
            }
            let chosen = running[self.pick(running.len())];
            let step = (actors[chosen].step)();
            if step == Step::Idle {
                idle[chosen] = true;
                continue;
            }
            idle.fill(false);
            if last.len() == TRACE {
                last.remove(0);
            }
            last.push(actors[chosen].name);
            if step == Step::Done {
                running.retain(|&at| at != chosen);
            }
        }
        Err(self.stuck(actors, &running, limit, false, last))
    }

    fn stuck(
        &self,
        actors: &[Actor<'_>],
        running: &[usize],
        steps: usize,
        idle: bool,
        last: Vec<&'static str>,
    ) -> Stuck {
        let waiting = running
            .iter()
            .filter(|&&at| actors[at].required)
            .map(|&at| actors[at].name)
            .collect();
        Stuck {
            seed: self.seed,
            steps,
            idle,
            waiting,
            last,
        }
    }
}
