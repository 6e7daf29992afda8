//! How spooled batches become smaller: detail goes first, what was done stays. Pure.
//!
//! A thinned sample is one of those that were measured, not a mean, so that a series stays one of
//! seconds with gaps, which every reader of history knows.

use std::collections::HashMap;

use headroom_wire::{Message, frame};

/// What is left of a segment, from everything to the least.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Detail {
    /// All that was reported.
    Whole,
    /// A sample of each workload every ten seconds; no forecasts.
    TenSeconds,
    /// A sample of each workload every minute; no forecasts, no sketches.
    Minute,
    /// Changes of limits and nothing else.
    Outcomes,
}

impl Detail {
    /// All, from everything to the least.
    pub(super) const ALL: [Self; 4] = [Self::Whole, Self::TenSeconds, Self::Minute, Self::Outcomes];

    /// How segment files of this detail end.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Self::Whole => "segment",
            Self::TenSeconds => "segment-10s",
            Self::Minute => "segment-1min",
            Self::Outcomes => "segment-outcomes",
        }
    }

    /// The next one with less.
    pub(super) fn less(self) -> Option<Self> {
        match self {
            Self::Whole => Some(Self::TenSeconds),
            Self::TenSeconds => Some(Self::Minute),
            Self::Minute => Some(Self::Outcomes),
            Self::Outcomes => None,
        }
    }

    /// Time of which one sample is left, seconds; `None` where none is.
    fn every_s(self) -> Option<f64> {
        match self {
            Self::Whole => Some(0.0),
            Self::TenSeconds => Some(10.0),
            Self::Minute => Some(60.0),
            Self::Outcomes => None,
        }
    }
}

/// Thins the batches of one segment, in their order.
#[derive(Debug)]
pub(super) struct Thinner {
    detail: Detail,
    /// The newest sample kept of each workload, seconds since the Unix epoch.
    kept_s: HashMap<u32, f64>,
}

impl Thinner {
    pub(super) fn new(detail: Detail) -> Self {
        Self { detail, kept_s: HashMap::new() }
    }

    /// The frame of a batch with less in it, and the samples that are left. The number of the batch
    /// stays: a number that never comes would be waited for. `None` when the frame is no batch of this
    /// release, which is left as it is.
    pub(super) fn batch(&mut self, bytes: &[u8]) -> Option<(Vec<u8>, u64)> {
        let Ok((Message::Batch(batch), _)) = frame::split(bytes) else { return None };
        let mut contents = batch.decode().ok()?;
        let every_s = self.detail.every_s();
        contents.samples.retain(|(index, sample)| {
            let Some(every_s) = every_s else { return false };
            let is_due = self.kept_s.get(index).is_none_or(|kept_s| {
                // Half a second is what a tick may be early; a clock set back begins anew.
                sample.t_s - kept_s > every_s - 0.5 || sample.t_s < *kept_s
            });
            if is_due {
                self.kept_s.insert(*index, sample.t_s);
            }
            is_due
        });
        contents.forecasts.clear();
        if self.detail > Detail::TenSeconds {
            contents.sketches.clear();
        }
        if contents.samples.is_empty() {
            contents.host = None;
            contents.limits.clear();
        }
        let vectors = contents.samples.len() as u64;
        let thinned = contents.encode(batch.boot, batch.seq).ok()?;
        let frame = frame::encode(&Message::Batch(thinned)).ok()?;
        Some((frame, vectors))
    }
}

#[cfg(test)]
mod tests {
    use headroom_allocate::{Knob, Limit};
    use headroom_predict::{
        Forecast, Source,
        forecast::{HORIZONS, LEVELS},
    };
    use headroom_telemetry::{Feature, Resource, SKETCH_BINS, Sample, SketchCounts, Sketches};
    use headroom_wire::{AppliedAction, Contents, HostReport, Message, frame, message::BootId};

    use super::{Detail, Thinner};

    /// Batch `seq` of two seconds and two workloads, with everything a batch can hold.
    fn batch(seq: u64) -> Vec<u8> {
        let at = |second: u64| 1_000.0 + 2.0 * seq as f64 + second as f64;
        let sample = |t_s: f64| {
            let mut sample = Sample::empty(t_s);
            sample.set(Feature::CpuCores, t_s);
            sample
        };
        let contents = Contents {
            host: Some((at(1), HostReport { cpus: 2, ..HostReport::default() })),
            samples: (0..4).map(|i| (i % 2, sample(at(u64::from(i / 2))))).collect(),
            forecasts: vec![(
                0,
                Forecast {
                    resource: Resource::Cpu,
                    origin_t_s: at(1),
                    step_s: 1.0,
                    quantiles: [[1.0; LEVELS]; HORIZONS],
                    source: Source::Base,
                    confidence: 1.0,
                },
            )],
            limits: vec![(0, Knob::CpuQuota, Limit::At(2.0))],
            actions: vec![(
                1,
                AppliedAction {
                    knob: Knob::CpuQuota,
                    before: Limit::At(1.0),
                    after: Limit::At(2.0),
                    at_s: at(0),
                    reason: format!("reason {seq}"),
                },
            )],
            sketches: vec![(
                0,
                Sketches {
                    order: SketchCounts::new(vec![seq as u32 + 1; SKETCH_BINS]),
                    code: None,
                },
            )],
        };
        frame::encode(&Message::Batch(contents.encode(BootId(7), seq).unwrap())).unwrap()
    }

    fn thinned(detail: Detail, frames: &[Vec<u8>]) -> (Vec<Vec<u8>>, Vec<Contents>, u64) {
        let mut thinner = Thinner::new(detail);
        let (mut out, mut contents, mut left) = (Vec::new(), Vec::new(), 0);
        for (seq, bytes) in frames.iter().enumerate() {
            let (frame, vectors) = thinner.batch(bytes).unwrap();
            let (Message::Batch(batch), _) = frame::split(&frame).unwrap() else { panic!() };
            assert_eq!((batch.boot, batch.seq), (BootId(7), seq as u64), "each keeps its number");
            contents.push(batch.decode().unwrap());
            out.push(frame);
            left += vectors;
        }
        (out, contents, left)
    }

    #[test]
    fn samples_become_fewer_and_what_was_done_stays() {
        let whole: Vec<Vec<u8>> = (0..60).map(batch).collect();
        let (ten, contents, left) = thinned(Detail::TenSeconds, &whole);
        assert_eq!(left, 2 * 12, "two minutes of two workloads");
        assert!(contents.iter().all(|contents| contents.forecasts.is_empty()));
        assert!(contents.iter().all(|contents| contents.sketches.len() == 1));
        // What is kept is as it was measured.
        let times: Vec<f64> = contents
            .iter()
            .flat_map(|c| &c.samples)
            .filter(|(i, _)| *i == 0)
            .map(|(_, s)| s.t_s)
            .collect();
        assert!(times.windows(2).all(|pair| (pair[1] - pair[0] - 10.0).abs() < 1e-6), "{times:?}");
        assert_eq!(contents[0].samples[0].1.get(Feature::CpuCores), Some(1_000.0));

        // A thinned segment is thinned again.
        let (minute, contents, left) = thinned(Detail::Minute, &ten);
        assert_eq!(left, 2 * 2);
        assert!(contents.iter().all(|contents| contents.sketches.is_empty()));
        let (outcomes, contents, left) = thinned(Detail::Outcomes, &minute);
        assert_eq!(left, 0);
        for (seq, contents) in contents.iter().enumerate() {
            assert_eq!(contents.actions[0].1.reason, format!("reason {seq}"));
            assert!(contents.host.is_none() && contents.limits.is_empty());
        }
        let bytes = |frames: &[Vec<u8>]| frames.iter().map(Vec::len).sum::<usize>();
        let sizes = [bytes(&whole), bytes(&ten), bytes(&minute), bytes(&outcomes)];
        assert!(sizes.windows(2).all(|pair| pair[1] < pair[0]), "{sizes:?}");
    }

    #[test]
    fn a_clock_that_is_set_back_keeps_what_comes_after() {
        let mut thinner = Thinner::new(Detail::Minute);
        let (_, first) = thinner.batch(&batch(100)).unwrap();
        let (_, after) = thinner.batch(&batch(0)).unwrap();
        assert_eq!((first, after), (2, 2));
    }

    #[test]
    fn what_is_no_batch_is_left_alone() {
        let mut thinner = Thinner::new(Detail::Minute);
        let other = frame::encode(&Message::Ack { boot: BootId(1), seq: 1 }).unwrap();
        assert!(thinner.batch(&other).is_none());
        assert!(thinner.batch(&[]).is_none());
        assert!(thinner.batch(&batch(1)[..20]).is_none());
    }
}
