//! What a workload costs on the wire per second, with samples that look like those of a real host.

use headroom_allocate::{Knob, Limit};
use headroom_predict::{
    Forecast, Source,
    forecast::{HORIZON_STEPS, HORIZONS, LEVELS},
};
use headroom_telemetry::{Feature, Resource, SKETCH_BINS, Sample, SketchCounts, Sketches};
use headroom_wire::{BootId, Contents, HostReport, Message, frame};

const WORKLOADS: u32 = 50;
const TICKS: u32 = 2;

/// A small generator: the shape of the data matters, not its quality.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as f64 / f64::from(1_u32 << 31)
    }
}

/// A third of the workloads is busy, a third nearly idle, a third asleep, as on a common host; what a
/// host cannot measure (PMU, GPU) and limits that are not set are missing.
fn sample(t_s: f64, workload: u32, noise: &mut Noise) -> Sample {
    let mut sample = Sample::empty(t_s);
    let activity = [1.0, 0.02, 0.0][workload as usize % 3];
    for &feature in Feature::ALL {
        let value = match feature {
            Feature::GpuUtilisation
            | Feature::GpuMemoryBytes
            | Feature::CpuLimitCores
            | Feature::MemoryLimitBytes => continue,
            Feature::MemoryBytes | Feature::MemoryAnonBytes | Feature::MemoryFileBytes => {
                (f64::from(workload + 1) * 7.7e6 / 4_096.0).round() * 4_096.0
                    + (activity * noise.next() * 100.0).round() * 4_096.0
            }
            Feature::Tasks => f64::from(workload % 40 + 1),
            Feature::CpuCores => activity * (0.8 + 0.4 * noise.next()),
            _ => (activity * 500.0 * noise.next()).floor(),
        };
        sample.set(feature, value);
    }
    sample
}

fn forecast(t_s: f64, resource: Resource, sample: &Sample, noise: &mut Noise) -> Forecast {
    let level = resource.usage(sample).unwrap_or(0.0);
    let mut quantiles = [[0.0; LEVELS]; HORIZONS];
    for (row, steps) in quantiles.iter_mut().zip(HORIZON_STEPS) {
        let spread = level * 0.1 * f64::from(steps).sqrt() * (0.9 + 0.2 * noise.next());
        for (value, z) in row.iter_mut().zip([-1.28, 0.0, 1.28, 1.64, 2.33]) {
            *value = (level + z * spread).max(0.0);
        }
    }
    Forecast {
        resource,
        origin_t_s: t_s,
        step_s: 1.0,
        quantiles,
        source: Source::Base,
        confidence: 0.9,
    }
}

/// What is in a sketch of ten seconds: a busy program makes a few hundred system calls a second in
/// a dozen patterns, and is sampled some thousand times in twice as many places.
fn sketches(workload: u32, noise: &mut Noise) -> Sketches {
    let activity = [1.0, 0.02, 0.0][workload as usize % 3];
    let mut fill = |bins: usize, events: f64| {
        let mut counts = vec![0; SKETCH_BINS];
        for _ in 0..bins {
            let bin = (noise.next() * SKETCH_BINS as f64) as usize % SKETCH_BINS;
            counts[bin] += (activity * events * noise.next() * noise.next()) as u32;
        }
        SketchCounts::new(counts)
    };
    Sketches { order: fill(12, 1_000.0), code: fill(24, 100.0) }
}

/// Sketches are sent once in so many seconds.
const SKETCH_EVERY_S: f64 = 10.0;

#[test]
fn a_workload_costs_little_per_second() {
    let mut noise = Noise(7);
    let mut contents = Contents {
        host: Some((1.764e9, HostReport { cpus: 8, ..HostReport::default() })),
        ..Contents::default()
    };
    for workload in 0..WORKLOADS {
        for tick in 0..TICKS {
            let t_s = 1.764e9 + f64::from(tick);
            contents.samples.push((workload, sample(t_s, workload, &mut noise)));
        }
        let newest = contents.samples.last().unwrap().1.clone();
        for resource in Resource::ALL {
            let forecast = forecast(newest.t_s, resource, &newest, &mut noise);
            contents.forecasts.push((workload, forecast));
        }
        contents.limits.push((workload, Knob::CpuQuota, Limit::Unlimited));
        contents.limits.push((workload, Knob::MemoryMax, Limit::Unlimited));
    }
    let batch = contents.encode(BootId(1), 1).unwrap();
    let [samples, forecasts, limits, _none] = batch.column_bytes();
    let frame = frame::encode(&Message::Batch(batch)).unwrap().len();
    let seconds = (WORKLOADS * TICKS) as usize;
    println!(
        "{WORKLOADS} workloads, {TICKS} s: {frame} bytes, {:.1} per workload and second (samples {:.1}, \
         forecasts {:.1}, limits {:.1}); as single floats {}",
        frame as f64 / seconds as f64,
        samples as f64 / seconds as f64,
        forecasts as f64 / seconds as f64,
        limits as f64 / seconds as f64,
        Feature::COUNT * 4,
    );
    let sketched = Contents {
        sketches: (0..WORKLOADS).map(|w| (w, sketches(w, &mut noise))).collect(),
        ..Contents::default()
    };
    let [.., sketch_bytes] = sketched.encode(BootId(1), 2).unwrap().column_bytes();
    let per_second = sketch_bytes as f64 / (f64::from(WORKLOADS) * SKETCH_EVERY_S);
    println!("sketches every {SKETCH_EVERY_S} s: {per_second:.1} bytes per workload and second");
    assert!(per_second < 8.0, "{sketch_bytes} bytes for sketches of {WORKLOADS} workloads");
    assert!(frame < 160 * seconds, "{frame} bytes for {seconds} workload-seconds");
}
