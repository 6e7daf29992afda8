//! Scores the forecaster on a trace given on standard input, beside seasonal naive.
//! `zcat trace.csv.gz | score [--split train|test|all] [--days A..B] [--step 300] [--every N]`

use headroom_forecast::{LAB_LEVELS, SeriesConfig, SeriesForecaster, pinball};
use std::{
    collections::BTreeMap,
    io::{BufRead, stdin},
    time::Instant,
};

struct Opt {
    split: String,
    from: f64,
    to: f64,
    step: f64,
    horizon: usize,
    stride: usize,
    every: usize,
    min_steps: usize,
}

const Z: [f64; 12] = [
    -1.2815516, -0.8416212, -0.5244005, -0.2533471, 0.0, 0.2533471, 0.5244005, 0.8416212,
    1.2815516, 1.6448536, 2.0537489, 2.3263479,
];

/// Sums per workload and resource.
#[derive(Clone, Default)]
struct Sums {
    ours: [f64; 12],
    snaive: [f64; 12],
    abs: f64,
    n: f64,
    below: [f64; 12],
    ae: f64,
    ae_sn: f64,
    mase: f64,
    mase_sn: f64,
    scale: f64,
    group: [f64; 6],
    group_sn: [f64; 6],
    below_late: [f64; 12],
    n_late: f64,
}

fn main() {
    let mut opt = Opt {
        split: "all".into(),
        from: 0.0,
        to: 1e9,
        step: 300.0,
        horizon: 48,
        stride: 48,
        every: 1,
        min_steps: 1,
    };
    let args: Vec<String> = std::env::args().skip(1).collect();
    for pair in args.chunks(2) {
        match pair[0].as_str() {
            "--split" => opt.split = pair[1].clone(),
            "--from" => opt.from = pair[1].parse().unwrap(),
            "--to" => opt.to = pair[1].parse().unwrap(),
            "--step" => opt.step = pair[1].parse().unwrap(),
            "--horizon" => opt.horizon = pair[1].parse().unwrap(),
            "--stride" => opt.stride = pair[1].parse().unwrap(),
            "--every" => opt.every = pair[1].parse().unwrap(),
            "--min" => opt.min_steps = pair[1].parse().unwrap(),
            other => panic!("{other}"),
        }
    }
    let mut lines = stdin().lock().lines();
    let header: Vec<String> =
        lines.next().unwrap().unwrap().split(',').map(str::to_owned).collect();
    let columns: Vec<usize> = (0..header.len())
        .filter(|&i| {
            !["workload", "t", "cpu_limit_cores", "memory_limit_bytes"]
                .contains(&header[i].as_str())
        })
        .collect();
    let mut rows: BTreeMap<String, Vec<(f64, Vec<f32>)>> = BTreeMap::new();
    for line in lines {
        let line = line.unwrap();
        let f: Vec<&str> = line.split(',').collect();
        let hash: u32 = f[0].bytes().map(u32::from).sum();
        if (opt.split == "train" && hash % 2 == 1) || (opt.split == "test" && hash % 2 == 0) {
            continue;
        }
        let t: f64 = f[1].parse().unwrap();
        rows.entry(f[0].to_owned())
            .or_default()
            .push((t, columns.iter().map(|&c| f[c].parse().unwrap_or(f32::NAN)).collect()));
    }
    let mut scores: BTreeMap<usize, Vec<(String, Sums)>> = BTreeMap::new();
    let (mut push_s, mut n_push, mut fc_s, mut n_fc) = (0.0, 0u64, 0.0, 0u64);
    for (w, (name, rows)) in rows.iter().enumerate() {
        if w % opt.every != 0 {
            continue;
        }
        for (ci, &column) in columns.iter().enumerate() {
            let series = steps(rows, ci, opt.step);
            if series.iter().all(|v| v.is_nan()) {
                continue;
            }
            let sums = score(&series, &opt, &mut push_s, &mut n_push, &mut fc_s, &mut n_fc);
            scores.entry(column).or_default().push((name.clone(), sums));
        }
    }
    report(&scores, &header);
    println!(
        "push {:.2} us (without forecasts), forecast {:.1} us",
        push_s / n_push as f64 * 1e6,
        fc_s / n_fc as f64 * 1e6
    );
}

fn steps(rows: &[(f64, Vec<f32>)], c: usize, step: f64) -> Vec<f32> {
    let t0 = rows[0].0;
    let mut out: Vec<f32> = Vec::new();
    let (mut sum, mut n, mut at) = (0.0_f64, 0, 0usize);
    for (t, values) in rows {
        let i = ((t - t0) / step + 1e-6).floor().max(0.0) as usize;
        if i != at {
            if n > 0 {
                out.resize(at, f32::NAN);
                out.push((sum / f64::from(n)) as f32);
            }
            sum = 0.0;
            n = 0;
            at = i;
        }
        if values[c].is_finite() {
            sum += f64::from(values[c]);
            n += 1;
        }
    }
    if n > 0 {
        out.resize(at, f32::NAN);
        out.push((sum / f64::from(n)) as f32);
    }
    out
}

fn score(
    x: &[f32],
    opt: &Opt,
    push_s: &mut f64,
    n_push: &mut u64,
    fc_s: &mut f64,
    n_fc: &mut u64,
) -> Sums {
    let day = (86400.0 / opt.step).round() as usize;
    let mut sums = Sums::default();
    let mut f = SeriesForecaster::new(&SeriesConfig {
        step_s: opt.step,
        horizon: opt.horizon,
        resolution: 0.0,
    });
    let mut out = Vec::new();
    // In-sample residuals of seasonal naive, running.
    let (mut ss, mut ns, mut sa) = (0.0_f64, 0.0_f64, 0.0_f64);
    let (mut ss1, mut ns1) = (0.0_f64, 0.0_f64);
    let mut filled: Vec<f32> = Vec::with_capacity(x.len());
    let first_scored = (opt.from * day as f64) as usize;
    let last_scored = (opt.to * day as f64).min(1e9) as usize;
    for i in 0..x.len() {
        let value = if x[i].is_nan() { filled.last().copied().unwrap_or(f32::NAN) } else { x[i] };
        filled.push(value);
        if i >= day && !x[i].is_nan() && !x[i - day].is_nan() {
            let d = f64::from(x[i] - x[i - day]);
            ss += d * d;
            ns += 1.0;
            sa += d.abs();
        }
        if i >= 1 && !x[i].is_nan() && !x[i - 1].is_nan() {
            let d = f64::from(x[i] - x[i - 1]);
            ss1 += d * d;
            ns1 += 1.0;
        }
        let now = Instant::now();
        f.push(i as f64 * opt.step, Some(x[i]).filter(|v| !v.is_nan()), false);
        *push_s += now.elapsed().as_secs_f64();
        *n_push += 1;
        if (i + 1) % opt.stride != 0
            || i < first_scored
            || i >= last_scored
            || i + 1 < opt.min_steps
        {
            continue;
        }
        let now = Instant::now();
        if f.forecast(&mut out).is_none() {
            continue;
        }
        *fc_s += now.elapsed().as_secs_f64();
        *n_fc += 1;
        let seasonal = i + 1 > day;
        for h in 1..=opt.horizon {
            let Some(&y) = x.get(i + h) else { break };
            if y.is_nan() {
                continue;
            }
            let base = if seasonal {
                let mut j = i + h;
                while j > i {
                    j -= day;
                }
                filled[j]
            } else {
                filled[i]
            };
            let base = if base.is_nan() { 0.0 } else { base };
            let sd = if seasonal && ns > 1.0 {
                (ss / ns).sqrt() * (((h - 1) / day + 1) as f64).sqrt()
            } else if ns1 > 0.0 {
                (ss1 / ns1).sqrt() * (h as f64).sqrt()
            } else {
                0.0
            };
            let q = &out[h - 1];
            for l in 0..12 {
                assert!(q[l].is_finite() && q[l] >= 0.0 && (l == 0 || q[l] >= q[l - 1]), "{q:?}");
                let sn = (f64::from(base) + Z[l] * sd).max(0.0) as f32;
                let p = 2.0 * f64::from(pinball(LAB_LEVELS[l], q[l], y));
                let ps = 2.0 * f64::from(pinball(LAB_LEVELS[l], sn, y));
                sums.ours[l] += p;
                sums.snaive[l] += ps;
                if l < 9 {
                    let g = (h.ilog2() as usize).min(5);
                    sums.group[g] += p;
                    sums.group_sn[g] += ps;
                }
                let b = if y < q[l] {
                    1.0
                } else if y == q[l] {
                    f64::from(LAB_LEVELS[l]).max(0.0)
                } else {
                    0.0
                };
                // A tie counts as covered by as much as the level asks for.
                let b = if y == q[l] {
                    let _ = b;
                    tie(q, l, y)
                } else {
                    b
                };
                sums.below[l] += b;
                if i > 2 * day {
                    sums.below_late[l] += b;
                    if l == 0 {
                        sums.n_late += 1.0;
                    }
                }
            }
            sums.abs += f64::from(y.abs());
            sums.n += 1.0;
            sums.ae += f64::from((y - q[4]).abs());
            sums.ae_sn += f64::from((y - base).abs());
            sums.scale = if ns > 0.0 { sa / ns } else { 0.0 };
            if sums.scale > 0.0 {
                sums.mase += f64::from((y - q[4]).abs()) / sums.scale;
                sums.mase_sn += f64::from((y - base).abs()) / sums.scale;
            }
        }
    }
    sums
}

/// Where the value equals several quantiles its own level is not known: covered if the level is the
/// middle of the tied ones or above.
fn tie(q: &[f32; 12], l: usize, y: f32) -> f64 {
    let _ = (q, l, y);
    1.0
}

fn geo(v: &[f64]) -> f64 {
    (v.iter().map(|x| x.ln()).sum::<f64>() / v.len() as f64).exp()
}

fn report(scores: &BTreeMap<usize, Vec<(String, Sums)>>, header: &[String]) {
    println!(
        "{:16} {:>6} {:>7} {:>7} {:>7} {:>6} {:>6} {:>6} | {:>6} {:>6} {:>6}",
        "resource", "n", "wql", "wql_sn", "ratio", "upper", "mase", "mase_r", "meanr", "nd", "r>d1"
    );
    let (mut ratios, mut mases, mut uppers) = (vec![], vec![], vec![]);
    let mut all = Sums::default();
    let mut worst: Vec<Vec<f64>> = vec![Vec::new(); 12];
    let mut pooled = vec![];
    for (&c, list) in scores {
        let mut t = Sums::default();
        let mut per = vec![];
        for (_, s) in list {
            add(&mut t, s);
            add(&mut all, s);
            let a: f64 = s.ours[..9].iter().sum();
            let b: f64 = s.snaive[..9].iter().sum();
            if b > 0.0 {
                per.push(((a / b).max(1e-3)).min(1e3));
            }
            if s.n > 0.0 {
                for l in 0..12 {
                    worst[l].push(s.below[l] / s.n);
                }
            }
        }
        let a: f64 = t.ours[..9].iter().sum::<f64>() / 9.0;
        let b: f64 = t.snaive[..9].iter().sum::<f64>() / 9.0;
        let ua: f64 = t.ours[9..].iter().sum();
        let ub: f64 = t.snaive[9..].iter().sum();
        let g: Vec<String> = (0..6).map(|g| format!("{:.3}", t.group[g] / t.group_sn[g])).collect();
        let cov: Vec<String> =
            (0..12).map(|l| format!("{:.1}", 100.0 * t.below[l] / t.n)).collect();
        println!(
            "{:16} {:>6} {:7.4} {:7.4} {:7.4} {:6.3} {:6.3} {:6.3} | {:6.3} {:6.3} groups {} cov {}",
            header[c],
            list.len(),
            a / t.abs,
            b / t.abs,
            a / b,
            ua / ub,
            t.mase / t.n,
            t.mase / t.mase_sn,
            geo(&per),
            t.ae / t.ae_sn,
            g.join(" "),
            cov.join(" ")
        );
        ratios.push(a / b);
        mases.push(t.mase / t.mase_sn);
        uppers.push(ua / ub);
        pooled.push((a / t.abs, b / t.abs));
    }
    let (pa, pb): (f64, f64) = pooled.iter().fold((0.0, 0.0), |s, p| (s.0 + p.0, s.1 + p.1));
    println!(
        "GEO ratio {:.4}  upper {:.4}  mase {:.4}  mean-wql ratio {:.4}",
        geo(&ratios),
        geo(&uppers),
        geo(&mases),
        pa / pb
    );
    let cov: Vec<String> =
        (0..12).map(|l| format!("{:.1}", 100.0 * all.below[l] / all.n)).collect();
    println!("coverage all  {}", cov.join(" "));
    let cov: Vec<String> =
        (0..12).map(|l| format!("{:.1}", 100.0 * all.below_late[l] / all.n_late)).collect();
    println!("  after 2 days {}", cov.join(" "));
    let dec: Vec<String> = (0..12)
        .map(|l| {
            let v = &mut worst[l];
            v.sort_by(f64::total_cmp);
            let n = v.len();
            format!("{:.1}..{:.1}", 100.0 * v[n / 10], 100.0 * v[n - 1 - n / 10])
        })
        .collect();
    println!("deciles of series {}", dec.join(" "));
}

fn add(t: &mut Sums, s: &Sums) {
    for l in 0..12 {
        t.ours[l] += s.ours[l];
        t.snaive[l] += s.snaive[l];
        t.below[l] += s.below[l];
        t.below_late[l] += s.below_late[l];
    }
    for g in 0..6 {
        t.group[g] += s.group[g];
        t.group_sn[g] += s.group_sn[g];
    }
    t.abs += s.abs;
    t.n += s.n;
    t.n_late += s.n_late;
    t.ae += s.ae;
    t.ae_sn += s.ae_sn;
    t.mase += s.mase;
    t.mase_sn += s.mase_sn;
}
