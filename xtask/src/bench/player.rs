//! The workloads of the benchmark: small processes that compute, call and read a little, steadily
//! or in waves. They play until they are ended.

use std::io::Read;
use std::time::{Duration, Instant};

/// What a workload does.
#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
pub(super) enum Role {
    /// About 1 % of a core, always.
    Steady,
    /// Waves between about 2 % and 20 % of a core, 10 s each.
    Waves,
    /// A fifth of a core from the first moment on.
    Start,
    /// Threads that wake every ten seconds.
    Idle,
}

/// Time between two turns.
const TURN: Duration = Duration::from_millis(100);

/// Length of a wave.
const WAVE: Duration = Duration::from_secs(10);

impl Role {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Waves => "waves",
            Self::Start => "start",
            Self::Idle => "idle",
        }
    }

    /// How long a turn computes, `elapsed` after the start.
    fn busy(self, elapsed: Duration) -> Duration {
        let high = elapsed.as_millis() % WAVE.as_millis() >= WAVE.as_millis() / 2;
        match self {
            Self::Steady => Duration::from_millis(1),
            Self::Idle => Duration::ZERO,
            Self::Waves if high => Duration::from_millis(20),
            Self::Waves => Duration::from_millis(2),
            Self::Start => Duration::from_millis(20),
        }
    }
}

/// Time between two turns of a thread that is mostly idle.
const REST: Duration = Duration::from_secs(10);

/// Plays for ever. Threads beyond the first are idle; only those roles have them that ask.
pub(super) fn play(role: Role, threads: u32) -> ! {
    let idle = || loop {
        std::thread::sleep(REST);
    };
    for _ in 1..threads {
        // One thread less is one to measure less; nothing else depends on it.
        if let Err(error) = std::thread::Builder::new().stack_size(64 << 10).spawn(idle) {
            eprintln!("a thread is missing: {error}");
        }
    }
    if role == Role::Idle {
        idle();
    }
    let begun = Instant::now();
    let mut buffer = [0_u8; 4096];
    loop {
        let turn = Instant::now();
        // A read of 4 KiB of nothing: a call of the reading class without a disk behind it.
        if let Ok(mut zero) = std::fs::File::open("/dev/zero") {
            let _read = zero.read(&mut buffer);
        }
        let busy = role.busy(begun.elapsed());
        while turn.elapsed() < busy {
            std::hint::black_box(&buffer);
        }
        std::thread::sleep(TURN.saturating_sub(turn.elapsed()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waves_rise_in_the_middle_of_their_period_and_steady_load_does_not() {
        let (early, late) = (Duration::from_secs(1), Duration::from_secs(6));
        assert!(Role::Waves.busy(late) > Role::Waves.busy(early));
        assert_eq!(Role::Steady.busy(late), Role::Steady.busy(early));
    }
}
