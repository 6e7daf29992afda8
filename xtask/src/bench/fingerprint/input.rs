//! Inputs that differ from run to run and are made of what lies on any machine: text and code from
//! the system's own folders, drawn by the seed of the run.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Size of the input file.
pub(super) const BYTES: usize = 12 << 20;
/// Files in the folder that programs walk through.
const TREE_FILES: usize = 800;
/// Files that are read to draw from.
const SOURCES_MAX: usize = 6_000;
/// Where files are drawn from.
const SOURCES: [&str; 5] = [
    "/usr/include",
    "/usr/lib/python3",
    "/usr/share/perl",
    "/usr/share/doc",
    "/usr/share/zoneinfo",
];

/// A generator for choosing files; its quality does not matter.
#[derive(Debug)]
pub(super) struct Draw(u64);

impl Draw {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap_or(0) % bound.max(1)
    }
}

/// `items` in another order for each `seed`.
pub(super) fn shuffled<T: Copy>(items: &[T], seed: u64) -> Vec<T> {
    let mut draw = Draw::new(seed);
    let mut order = items.to_vec();
    for last in (1..order.len()).rev() {
        order.swap(last, draw.below(last + 1));
    }
    order
}

/// Files of this machine that inputs are made of.
pub(super) fn sources() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = SOURCES.iter().map(PathBuf::from).collect();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() && entry.metadata().is_ok_and(|meta| meta.len() < 1 << 20) {
                found.push(entry.path());
            }
        }
        if found.len() >= SOURCES_MAX {
            break;
        }
    }
    if found.is_empty() {
        bail!("no files to make inputs of in {}", SOURCES.join(", "));
    }
    found.sort();
    Ok(found)
}

/// Writes `input` (a file of [`BYTES`]) and `tree` (a folder of links to files) into `folder`.
pub(super) fn make(folder: &Path, sources: &[PathBuf], seed: u64) -> Result<()> {
    let mut draw = Draw::new(seed);
    let mut input = Vec::with_capacity(BYTES);
    // Sources that cannot be read or are empty must not make this endless.
    for _ in 0..100 * SOURCES_MAX {
        if input.len() >= BYTES {
            break;
        }
        if let Ok(bytes) = fs::read(&sources[draw.below(sources.len())]) {
            input.extend(bytes);
        }
    }
    input.truncate(BYTES);
    write(&folder.join("input"), &input)?;
    let tree = folder.join("tree");
    for i in 0..TREE_FILES {
        let inner = tree.join(format!("{}", i % 20));
        fs::create_dir_all(&inner).with_context(|| format!("make {}", inner.display()))?;
        if let Ok(bytes) = fs::read(&sources[draw.below(sources.len())]) {
            write(&inner.join(format!("{i:x}")), &bytes)?;
        }
    }
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::File::create(path)
        .and_then(|mut file| file.write_all(bytes))
        .with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::{Draw, shuffled};

    #[test]
    fn another_seed_is_another_order_of_the_same() {
        let items: Vec<u32> = (0..30).collect();
        let (first, second) = (shuffled(&items, 1), shuffled(&items, 2));
        assert_ne!(first, second);
        assert_eq!(shuffled(&items, 1), first);
        let mut sorted = first;
        sorted.sort_unstable();
        assert_eq!(sorted, items);
        assert!(shuffled::<u32>(&[], 1).is_empty());
    }

    #[test]
    fn other_seeds_draw_other_files() {
        let draw = |seed| {
            let mut draw = Draw::new(seed);
            (0..20).map(|_| draw.below(1_000)).collect::<Vec<_>>()
        };
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
        assert!(draw(5).iter().all(|at| *at < 1_000));
    }
}
