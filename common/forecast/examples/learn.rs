//! Learns the weights that experts have before they are scored, from traces on standard input
//! (several, one after the other, are fine): exponentiated gradient on the simplex, by horizon
//! group and level, each series counted by its own scale. Prints a table of constants.
use headroom_forecast::{EXPERTS, LAB_LEVELS, N_EXPERTS, SeriesConfig, SeriesForecaster};
use std::{
    collections::BTreeMap,
    io::{BufRead, stdin},
};

struct Item {
    group: usize,
    panel: [Option<[f32; 12]>; N_EXPERTS],
    y: f32,
    scale: f32,
    weight: f32,
}

fn main() {
    let keep: usize = std::env::args().nth(1).map_or(29, |s| s.parse().unwrap());
    let mut items: Vec<Item> = Vec::new();
    let mut header: Vec<String> = vec![];
    let mut rows: BTreeMap<String, Vec<(f64, Vec<f32>)>> = BTreeMap::new();
    let mut traces = 0;
    for line in stdin().lock().lines() {
        let line = line.unwrap();
        if line.starts_with("workload") {
            collect(&header, &rows, keep, &mut items);
            rows.clear();
            header = line.split(',').map(str::to_owned).collect();
            traces += 1;
            continue;
        }
        let f: Vec<&str> = line.split(',').collect();
        let hash: u32 = f[0].bytes().map(u32::from).sum();
        if hash % 2 == 1 {
            continue;
        }
        rows.entry(f[0].to_owned()).or_default().push((
            f[1].parse().unwrap(),
            (2..f.len()).map(|c| f[c].parse().unwrap_or(f32::NAN)).collect(),
        ));
    }
    collect(&header, &rows, keep, &mut items);
    eprintln!("{} items of {traces} traces", items.len());
    let mut w = vec![[[1.0_f64 / N_EXPERTS as f64; N_EXPERTS]; 12]; 6];
    let epochs = 40;
    for epoch in 0..epochs {
        let mut grad = vec![[[0.0_f64; N_EXPERTS]; 12]; 6];
        let mut loss = [0.0_f64; 6];
        let mut norm = [0.0_f64; 6];
        for it in &items {
            let g = it.group;
            norm[g] += f64::from(it.weight);
            for l in 0..12 {
                let (mut q, mut sw) = (0.0, 0.0);
                for k in 0..N_EXPERTS {
                    if let Some(p) = it.panel[k] {
                        q += w[g][l][k] * f64::from(p[l]);
                        sw += w[g][l][k];
                    }
                }
                if sw <= 0.0 {
                    continue;
                }
                let q = q / sw;
                let y = f64::from(it.y);
                let tau = f64::from(LAB_LEVELS[l]);
                let s = f64::from(it.weight) / f64::from(it.scale);
                loss[g] += s * (if y > q { tau * (y - q) } else { (1.0 - tau) * (q - y) });
                let d = s * (if y > q { -tau } else { 1.0 - tau });
                for k in 0..N_EXPERTS {
                    if let Some(p) = it.panel[k] {
                        grad[g][l][k] += d * (f64::from(p[l]) - q) / sw;
                    }
                }
            }
        }
        if epoch % 10 == 0 || epoch == epochs - 1 {
            eprintln!(
                "epoch {epoch} loss {:?}",
                (0..6).map(|g| format!("{:.4}", loss[g] / norm[g] / 12.0)).collect::<Vec<_>>()
            );
        }
        for g in 0..6 {
            for l in 0..12 {
                let gmax = grad[g][l].iter().fold(1e-12_f64, |a, b| a.max(b.abs()));
                let rate = 0.5 / (1.0 + epoch as f64 / 8.0);
                let mut sum = 0.0;
                for k in 0..N_EXPERTS {
                    w[g][l][k] = (w[g][l][k] * (-rate * grad[g][l][k] / gmax).exp()).max(1e-3);
                    sum += w[g][l][k];
                }
                for k in 0..N_EXPERTS {
                    w[g][l][k] /= sum;
                }
            }
        }
    }
    println!("pub(crate) const WEIGHTS: [[[f32; N_EXPERTS]; N_LEVELS]; N_GROUPS] = [");
    for g in &w {
        println!("    [");
        for l in g {
            println!(
                "        [{}],",
                l.iter().map(|v| format!("{v:.3}")).collect::<Vec<_>>().join(", ")
            );
        }
        println!("    ],");
    }
    println!("];");
    for k in 0..N_EXPERTS {
        eprintln!(
            "{:16} {}",
            EXPERTS[k],
            (0..6)
                .map(|g| format!("{:.2}/{:.2}/{:.2}", w[g][1][k], w[g][4][k], w[g][9][k]))
                .collect::<Vec<_>>()
                .join("  ")
        );
    }
}

fn collect(
    header: &[String],
    rows: &BTreeMap<String, Vec<(f64, Vec<f32>)>>,
    keep: usize,
    items: &mut Vec<Item>,
) {
    if rows.is_empty() {
        return;
    }
    let n_series = rows.len().max(1);
    for rows in rows.values() {
        for c in 2..header.len() {
            if header[c].ends_with("limit_cores") || header[c].ends_with("limit_bytes") {
                continue;
            }
            let t0 = rows[0].0;
            let mut x: Vec<f32> = Vec::new();
            let (mut sum, mut n, mut at) = (0.0_f64, 0, 0usize);
            for (t, values) in
                rows.iter().chain(std::iter::once(&(f64::MAX, vec![f32::NAN; header.len()])))
            {
                let i = if *t == f64::MAX {
                    usize::MAX
                } else {
                    ((t - t0) / 300.0 + 1e-6).floor().max(0.0) as usize
                };
                if i != at {
                    if n > 0 {
                        x.resize(at, f32::NAN);
                        x.push((sum / f64::from(n)) as f32);
                    }
                    sum = 0.0;
                    n = 0;
                    at = i;
                }
                if at > 288 * 20 {
                    break;
                }
                if let Some(v) = values.get(c - 2) {
                    if v.is_finite() {
                        sum += f64::from(*v);
                        n += 1;
                    }
                }
            }
            let known: Vec<f32> = x.iter().copied().filter(|v| v.is_finite()).collect();
            if known.len() < 50 {
                continue;
            }
            let scale = known.iter().sum::<f32>() / known.len() as f32;
            if scale <= 0.0 {
                continue;
            }
            let mut f = SeriesForecaster::new(&SeriesConfig {
                step_s: 300.0,
                horizon: 48,
                resolution: 0.0,
            });
            let every = if n_series > 100 { keep * 2 } else { keep };
            for (i, v) in x.iter().enumerate() {
                f.push(i as f64 * 300.0, Some(*v).filter(|v| v.is_finite()), false);
                if i % every != every - 1 {
                    continue;
                }
                for g in 0..6 {
                    let h = (1 << g) + (i / every * 7) % (1 << g).min(17);
                    if let Some((panel, y)) = f.hindsight(h) {
                        items.push(Item { group: g, panel, y, scale, weight: 1.0 });
                    }
                }
            }
        }
    }
}
