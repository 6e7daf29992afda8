//! A lake with two hours of three workloads, and what is asked of it.

use std::sync::Arc;

use headroom_lake::{
    ActionRow, Identity, Lake, Root, Rows,
    engine::{Engine, Snapshot},
    lake::Keeping,
    output::{Format, render},
    schema,
    storage::Local,
};
use headroom_telemetry::Feature;

/// The begin of an hour.
pub(crate) const T0_MS: i64 = 1_795_370_400_000;

pub(crate) fn identity(id: u32) -> Arc<Identity> {
    Arc::new(Identity {
        id,
        host: format!("host-{}", id % 2),
        path: format!("/w/{id}"),
        model_key: format!("cgroup:/w/{id}"),
    })
}

pub(crate) fn rows(seconds: std::ops::Range<i64>, of: u32) -> Rows {
    let mut rows = Rows::default();
    for second in seconds {
        rows.t_ms.push(T0_MS + second * 1_000);
        let mut values = vec![f32::NAN; Feature::COUNT];
        values[Feature::CpuCores.index()] = ((second % 37) as f32).mul_add(0.25, of as f32);
        if second % 3 != 0 {
            values[Feature::MemoryBytes.index()] = (second * 4_096) as f32;
        }
        rows.values.extend(values);
    }
    rows
}

/// Two hours of three workloads in four files, the first hour merged and thinned.
pub(crate) fn make_lake(root: &Root) -> Lake {
    let lake = Lake::open(root.clone(), "main", Arc::new(Local), None).unwrap();
    for (number, from) in [0, 1_800, 3_600, 5_400].into_iter().enumerate() {
        let series = (0..3).map(|id| (identity(id), rows(from..from + 1_800, id))).collect();
        let action = ActionRow {
            t_ms: T0_MS + from * 1_000 + 500,
            knob: "cpu.max".to_owned(),
            change: "{}".to_owned(),
        };
        let actions = vec![((*identity(1)).clone(), action)];
        lake.adopt(lake.seal(number as u64, series, actions).unwrap());
    }
    let keeping =
        Keeping { samples_ms: 86_400_000, samples_10s_ms: 86_400_000, samples_5m_ms: 86_400_000 };
    let tended = lake.tend(T0_MS + 4_300_000, 9, &keeping).unwrap();
    assert_eq!((tended.merged, tended.thinned), (2, 1));
    let workloads: Vec<_> =
        (0..3).map(|id| ((*identity(id)).clone(), format!("w{id}"), "cgroup".to_owned())).collect();
    lake.write_workloads(&schema::workloads_batch(&workloads, root.path()).unwrap()).unwrap();
    lake
}

pub(crate) fn snapshot(root: &Root) -> Snapshot {
    Snapshot::take(root, 0, i64::MAX).unwrap()
}

/// Hears of days that are done.
pub(crate) fn quiet(_done: usize, _days: usize, _name: &str) {}

pub(crate) async fn csv(engine: &dyn Engine, snapshot: &Snapshot, sql: &str) -> String {
    let rows = engine.sql(snapshot, sql).await.unwrap();
    String::from_utf8(render(&rows, Format::Csv).unwrap()).unwrap()
}

/// In the subset of SQL that all engines share.
pub(crate) const QUERIES: [&str; 6] = [
    "SELECT COUNT(*) AS n, COUNT(memory_bytes) AS with_memory, MIN(t_ms) AS first, MAX(t_ms) AS last FROM samples",
    "SELECT host, path, COUNT(*) AS n, MAX(cpu_cores) AS peak FROM samples GROUP BY host, path ORDER BY host, path",
    "SELECT path, t_ms, n, cpu_cores, cpu_cores_max FROM samples_10s WHERE path = '/w/2' ORDER BY t_ms LIMIT 20",
    "SELECT path, t_ms, n, cpu_cores_p95 FROM samples_5m ORDER BY path, t_ms",
    "SELECT w.name, a.knob, a.t_ms FROM actions a JOIN workloads w ON a.path = w.path ORDER BY a.t_ms",
    "SELECT t_ms, cpu_cores - LAG(cpu_cores) OVER (ORDER BY t_ms) AS step FROM samples WHERE path = '/w/1' AND t_ms < 1795370500000 ORDER BY t_ms",
];
