//! A set of CPUs as the kernel writes it, like `0-3,8`; pure.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// CPUs told apart. Hosts with more keep their placement: no list of them is understood.
const CPUS_MAX: usize = 256;

/// Some CPUs, or none.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CpuSet([u64; CPUS_MAX / 64]);

impl CpuSet {
    /// Reads a list; `None` when it is none, or names a CPU that is not told apart.
    pub fn parse(text: &str) -> Option<Self> {
        let mut set = Self::default();
        if text.is_empty() {
            return Some(set);
        }
        for range in text.split(',') {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
            if first > last || last >= CPUS_MAX {
                return None;
            }
            (first..=last).for_each(|cpu| set.insert(cpu));
        }
        Some(set)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// `count` of them: the first of its own, then the first of `others`; fewer when there are no
    /// more.
    pub fn resized(&self, count: usize, others: &Self) -> Self {
        let mut set = Self::default();
        let own = self.iter();
        let further = others.iter().filter(|cpu| !self.contains(*cpu));
        own.chain(further).take(count).for_each(|cpu| set.insert(cpu));
        set
    }

    fn insert(&mut self, cpu: usize) {
        self.0[cpu / 64] |= 1 << (cpu % 64);
    }

    fn contains(&self, cpu: usize) -> bool {
        cpu < CPUS_MAX && self.0[cpu / 64] & (1 << (cpu % 64)) != 0
    }

    fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        (0..CPUS_MAX).filter(|cpu| self.contains(*cpu))
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cpu = 0;
        let mut separator = "";
        while cpu < CPUS_MAX {
            if !self.contains(cpu) {
                cpu += 1;
                continue;
            }
            let first = cpu;
            while self.contains(cpu + 1) {
                cpu += 1;
            }
            if first == cpu {
                write!(f, "{separator}{first}")?;
            } else {
                write!(f, "{separator}{first}-{cpu}")?;
            }
            separator = ",";
            cpu += 1;
        }
        Ok(())
    }
}

impl Serialize for CpuSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CpuSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| de::Error::custom("not a list of CPUs"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, proptest};

    use super::CpuSet;

    #[test]
    fn lists_are_read_and_written_as_the_kernel_does() {
        for text in ["", "0", "0-3,8", "1,3,5", "63-64", "255"] {
            assert_eq!(CpuSet::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(CpuSet::parse("0-1,2").unwrap().to_string(), "0-2");
        for text in ["a", "3-1", "256", "0-", ",", "0,,1", "-1"] {
            assert!(CpuSet::parse(text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn its_own_come_first_when_it_grows_and_last_when_it_shrinks() {
        let (own, all) = (CpuSet::parse("2-3").unwrap(), CpuSet::parse("0-3").unwrap());
        assert_eq!(own.resized(3, &all).to_string(), "0,2-3");
        assert_eq!(own.resized(1, &all).to_string(), "2");
        assert_eq!(own.resized(9, &all).to_string(), "0-3");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(cpus in vec(0usize..256, 0..40)) {
            let mut set = CpuSet::default();
            cpus.iter().for_each(|cpu| set.insert(*cpu));
            assert_eq!(CpuSet::parse(&set.to_string()), Some(set));
        }
    }
}
