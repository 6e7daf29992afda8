//! Reads a trail back and checks its chain.

use std::{
    fs,
    io::{self, BufRead as _, BufReader},
    path::Path,
};

use super::{
    AuditRecord,
    trail::{Line, hash, older},
};

/// A trail as it was found.
#[derive(Debug, Default)]
pub struct Trail {
    /// What could be read, oldest first.
    pub records: Vec<AuditRecord>,
    /// Where the chain does not hold, or a line cannot be read: one sentence each.
    pub breaks: Vec<String>,
}

/// Reads the trail in `path` and the part before it that was renamed away.
///
/// # Errors
/// When `path` cannot be read. A missing older part is none.
pub fn read(path: &Path) -> io::Result<Trail> {
    let mut trail = Trail::default();
    let mut before = None;
    let older = older(path);
    if older.exists() {
        read_file(&older, &mut trail, &mut before)?;
    }
    read_file(path, &mut trail, &mut before)?;
    Ok(trail)
}

/// `before`: the hash of the line before the file's first, when that is known.
fn read_file(path: &Path, trail: &mut Trail, before: &mut Option<String>) -> io::Result<()> {
    let reader = BufReader::new(fs::File::open(path)?);
    for (index, line) in reader.split(b'\n').enumerate() {
        let line = line?;
        let place = format!("{}, line {}", path.display(), index + 1);
        let this = hash(&line);
        match serde_json::from_slice::<Line<AuditRecord>>(&line) {
            Ok(Line { prev, record, .. }) => {
                if before.as_ref().is_some_and(|before| *before != prev) {
                    trail.breaks.push(format!(
                        "{place}: the line before it is not the one it was written after"
                    ));
                }
                trail.records.push(record);
            }
            Err(error) => trail.breaks.push(format!("{place}: {error}")),
        }
        *before = Some(this);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::trail::tests::append, read};

    #[test]
    fn what_was_changed_taken_out_or_put_in_shows() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("audit.jsonl");
        append(&file, 0..4);
        assert!(read(&file).unwrap().breaks.is_empty());
        let text = std::fs::read_to_string(&file).unwrap();
        let lines: Vec<&str> = text.lines().collect();

        let check = |lines: &[&str]| {
            std::fs::write(&file, lines.join("\n")).unwrap();
            read(&file).unwrap().breaks
        };
        let changed = lines[1].replace("\"t_s\":1.0", "\"t_s\":1.5");
        assert_ne!(changed, lines[1]);
        let breaks = check(&[lines[0], &changed, lines[2], lines[3]]);
        assert!(breaks.len() == 1 && breaks[0].contains("line 3"), "{breaks:?}");
        assert_eq!(check(&[lines[0], lines[2], lines[3]]).len(), 1);
        assert_eq!(check(&[lines[0], lines[0], lines[1], lines[2], lines[3]]).len(), 1);
    }

    #[test]
    fn a_trail_that_is_not_there_is_an_error() {
        assert!(read(std::path::Path::new("/nowhere/audit.jsonl")).is_err());
    }
}
