//! Block devices whose I/O appears a second time on the devices below them.

use std::{collections::BTreeSet, fs, path::Path};

/// Device-mapper, RAID and loop devices: their I/O is counted again on what they are made of.
///
/// Leaving them out keeps cgroup disk totals equal to what reached real devices.
#[derive(Clone, Debug, Default)]
pub struct StackedDevices(BTreeSet<(u32, u32)>);

impl StackedDevices {
    /// Reads `/sys/block` below `root`. A host without it has no stacked devices to leave out.
    pub fn read(root: &Path) -> Self {
        let Ok(entries) = fs::read_dir(root.join("sys/block")) else { return Self::default() };
        let stacked = entries.flatten().filter_map(|entry| {
            let dir = entry.path();
            let is_loop = entry.file_name().as_encoded_bytes().starts_with(b"loop");
            let is_made_of_others =
                fs::read_dir(dir.join("slaves")).is_ok_and(|mut slaves| slaves.next().is_some());
            if !is_loop && !is_made_of_others {
                return None;
            }
            let number = fs::read_to_string(dir.join("dev")).ok()?;
            let (major, minor) = number.trim().split_once(':')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        });
        Self(stacked.collect())
    }

    /// Whether I/O on `device` is counted here and not below.
    pub fn counts(&self, device: (u32, u32)) -> bool {
        !self.0.contains(&device)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::StackedDevices;

    #[test]
    fn devices_made_of_others_are_left_out() {
        let root = tempfile::tempdir().unwrap();
        for (name, number, slave) in [("vda", "254:0", None), ("dm-0", "253:0", Some("vda"))] {
            let dir = root.path().join("sys/block").join(name);
            fs::create_dir_all(dir.join("slaves")).unwrap();
            fs::write(dir.join("dev"), format!("{number}\n")).unwrap();
            if let Some(slave) = slave {
                fs::create_dir(dir.join("slaves").join(slave)).unwrap();
            }
        }
        let devices = StackedDevices::read(root.path());
        assert!(devices.counts((254, 0)));
        assert!(!devices.counts((253, 0)));
    }
}
