//! Files: every form is told by its content, read as a stream and read back as written.

use std::{
    fs,
    io::{self, Read, Write as _},
    path::Path,
};

use flate2::{Compression, write::GzEncoder};

use crate::{FindingKind, Reading, Row, Trace, create, open, open_as};

const TEXT: &str = "workload,t,cpu_cores,memory_bytes\na,1,0.5,\nb,1,,4096\na,2.5,0.25,10\n";

fn rows(path: &Path) -> Vec<(String, f64, Vec<Option<f64>>)> {
    let mut rows: Vec<Row> = open(path).unwrap().collect::<Result<_, _>>().unwrap();
    rows.sort_by(|a, b| (&a.workload, a.t_s).partial_cmp(&(&b.workload, b.t_s)).unwrap());
    rows.into_iter().map(|row| (row.workload.to_string(), row.t_s, row.values)).collect()
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn text_is_read_whatever_its_name_and_in_several_members() {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain.parquet");
    fs::write(&plain, TEXT).unwrap();
    let expected = rows(&plain);
    assert_eq!(expected.len(), 3);
    assert_eq!(expected[1], ("a".to_owned(), 2.5, vec![Some(0.25), Some(10.0)]));
    let (first, second) = TEXT.split_at(50);
    let zipped = dir.path().join("zipped.csv");
    fs::write(&zipped, [gzip(first), gzip(second)].concat()).unwrap();
    assert_eq!(rows(&zipped), expected);
}

#[test]
fn what_is_created_is_read_back_in_every_form() {
    let dir = tempfile::tempdir().unwrap();
    let columns = ["cpu_cores".to_owned(), "wind".to_owned()];
    let forms: &[&str] = if cfg!(feature = "parquet") {
        &["x.csv", "x.csv.gz", "x.parquet"]
    } else {
        &["x.csv", "x.csv.gz"]
    };
    // More rows than a group of a Parquet file has.
    let values =
        |i: u32| [(!i.is_multiple_of(3)).then(|| f64::from(i) / 7.0), Some(-f64::from(i % 11))];
    for form in forms {
        let path = dir.path().join(form);
        let mut writer = create(&path, &columns).unwrap();
        for i in 0..70_000_u32 {
            let cpu = values(i)[0].map(|cores| cores % 5.0);
            writer
                .write(["w0", "w1"][i as usize % 2], f64::from(i) + 0.5, &[cpu, values(i)[1]])
                .unwrap();
        }
        assert!(!path.exists(), "a file that is not whole is not at its place");
        writer.finish().unwrap();
        let read = rows(&path);
        assert_eq!(read.len(), 70_000);
        for (at, (workload, t_s, read)) in read.iter().enumerate() {
            let i = if at < 35_000 { at * 2 } else { (at - 35_000) * 2 + 1 };
            let i = u32::try_from(i).unwrap();
            assert_eq!(
                (workload.as_str(), *t_s),
                (["w0", "w1"][i as usize % 2], f64::from(i) + 0.5)
            );
            assert_eq!(*read, [values(i)[0].map(|cores| cores % 5.0), values(i)[1]]);
        }
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), forms.len(), "no temporary file is left");
}

#[test]
fn a_writer_that_is_dropped_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = create(&dir.path().join("x.csv.gz"), &[]).unwrap();
    writer.write("a", 1.0, &[]).unwrap();
    drop(writer);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_file_that_ends_early_counts_up_to_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cut.csv.gz");
    let rows: String = (0..20_000).map(|i| format!("a,{i},{}\n", i * 7919 % 1000)).collect();
    let whole = gzip(&format!("workload,t,degrees\n{rows}"));
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let mut trace = open(&path).unwrap();
    let mut read = 0;
    while trace.read_row().unwrap().is_some() {
        read += 1;
    }
    assert!((1_000..19_000).contains(&read), "{read}");
    assert_eq!(trace.findings().count(FindingKind::CutShort), 1);
    assert_eq!(trace.progress().1, Some(whole.len() as u64 / 2));
    assert!(open_as(&path, Reading::Strict).unwrap().any(|row| row.is_err()));
}

#[test]
fn files_that_are_no_traces_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let cases: [(&str, &[u8], &str); 4] = [
        ("empty.csv", b"", "is empty; a trace has a header"),
        ("binary.csv", b"\x7fELF\0\0\0\0", "is neither CSV, gzipped CSV nor Parquet"),
        ("other.csv", b"time,cpu\n1,2\n", "has no column \"workload\"; it has time,cpu"),
        ("short.parquet", b"PAR1", "short.parquet"),
    ];
    for (name, content, expected) in cases {
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        let error = open(&path).err().unwrap().to_string();
        assert!(error.contains(name) && error.contains(expected), "{error}");
    }
    let missing = open(&dir.path().join("none.csv")).err().unwrap().to_string();
    assert!(missing.starts_with("open "), "{missing}");
}

/// An endless trace, made as it is read.
struct Generated {
    row: u64,
    left: Vec<u8>,
    bytes_left: usize,
}

impl Read for Generated {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left.is_empty() && self.bytes_left > 0 {
            let mut line = String::new();
            for _ in 0..100 {
                let row = self.row;
                let (workload, t, value) = (row % 50, row / 50, row * 7919 % 1000);
                line.push_str(&format!("workload-{workload},{t},{value},{value}\n"));
                self.row += 1;
            }
            self.left = line.into_bytes();
            self.bytes_left = self.bytes_left.saturating_sub(self.left.len());
        }
        let length = self.left.len().min(buffer.len());
        buffer[..length].copy_from_slice(&self.left[..length]);
        self.left.drain(..length);
        Ok(length)
    }
}

#[cfg(target_os = "linux")]
#[test]
fn memory_does_not_grow_with_rows() {
    let memory_bytes = || -> u64 {
        let pages = fs::read_to_string("/proc/self/statm").unwrap();
        pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    };
    let header = io::Cursor::new("workload,t,cpu_cores,degrees\n");
    let input = header.chain(Generated { row: 0, left: Vec::new(), bytes_left: 200 << 20 });
    let mut trace = Trace::from_csv(input, "generated", Reading::Lenient).unwrap();
    let mut read = 0_u64;
    let mut early_bytes = 0;
    while trace.read_row().unwrap().is_some() {
        read += 1;
        if read == 100_000 {
            early_bytes = memory_bytes();
        }
    }
    assert!(read > 5_000_000, "{read}");
    // Tests run beside one another; a trace that kept its rows would take gigabytes.
    assert!(memory_bytes() < early_bytes + (200 << 20));
}
