//! How often strangers may fail: counts per address over a minute, in bounded memory. Pure.

use std::{collections::HashMap, net::IpAddr};

/// Addresses counted at once; beyond it those whose minute is over are forgotten, then the oldest.
const ADDRESSES_MAX: usize = 4_096;
const WINDOW_S: f64 = 60.0;

/// Failed attempts of one network.
#[derive(Clone, Copy, Debug)]
struct Failures {
    since_s: f64,
    count: u32,
}

/// Counts failures.
#[derive(Debug)]
pub struct Throttle {
    failures_max: u32,
    by_network: HashMap<IpAddr, Failures>,
}

/// Neighbours in IPv6 share a /64, which one host can have whole.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            std::net::Ipv6Addr::from(u128::from(address) & !u128::from(u64::MAX)).into()
        }
    }
}

impl Throttle {
    /// Lets each address fail `failures_max` times a minute.
    pub fn new(failures_max: u32) -> Self {
        Self { failures_max, by_network: HashMap::new() }
    }

    /// How long `address` has to wait, seconds; `None` when it may ask now.
    pub fn wait_s(&self, address: IpAddr, now_s: f64) -> Option<f64> {
        let failures = self.by_network.get(&network(address))?;
        let left_s = failures.since_s + WINDOW_S - now_s;
        (failures.count >= self.failures_max && left_s > 0.0).then_some(left_s)
    }

    /// `address` failed.
    pub fn failed(&mut self, address: IpAddr, now_s: f64) {
        let key = network(address);
        if self.by_network.len() >= ADDRESSES_MAX && !self.by_network.contains_key(&key) {
            self.by_network.retain(|_, failures| now_s - failures.since_s < WINDOW_S);
            if self.by_network.len() >= ADDRESSES_MAX {
                let oldest =
                    self.by_network.iter().min_by(|(_, a), (_, b)| a.since_s.total_cmp(&b.since_s));
                if let Some(oldest) = oldest.map(|(network, _)| *network) {
                    self.by_network.remove(&oldest);
                }
            }
        }
        let failures = self.by_network.entry(key).or_insert(Failures { since_s: now_s, count: 0 });
        if now_s - failures.since_s >= WINDOW_S {
            *failures = Failures { since_s: now_s, count: 0 };
        }
        failures.count = failures.count.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::{ADDRESSES_MAX, Throttle};

    #[test]
    fn who_fails_often_waits_and_others_do_not() {
        let mut throttle = Throttle::new(3);
        let (one, two): (IpAddr, IpAddr) =
            ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        for i in 0..3 {
            assert_eq!(throttle.wait_s(one, f64::from(i)), None);
            throttle.failed(one, f64::from(i));
        }
        assert_eq!(throttle.wait_s(one, 3.0), Some(57.0));
        assert_eq!(throttle.wait_s(two, 3.0), None);
        assert_eq!(throttle.wait_s("::ffff:192.0.2.1".parse().unwrap(), 3.0), Some(57.0));
        assert_eq!(throttle.wait_s(one, 60.0), None);
        throttle.failed(one, 60.0);
        assert_eq!(throttle.wait_s(one, 60.0), None, "the count begins anew");
    }

    #[test]
    fn neighbours_of_one_64_are_one() {
        let mut throttle = Throttle::new(1);
        throttle.failed("2001:db8::1".parse().unwrap(), 0.0);
        assert!(throttle.wait_s("2001:db8::ffff".parse().unwrap(), 1.0).is_some());
        assert!(throttle.wait_s("2001:db8:0:1::1".parse().unwrap(), 1.0).is_none());
    }

    #[test]
    fn memory_is_bounded_and_the_newest_are_kept() {
        let mut throttle = Throttle::new(1);
        for i in 0..5_000_u32 {
            throttle.failed(Ipv4Addr::from(i).into(), f64::from(i) / 1_000.0);
        }
        assert_eq!(throttle.by_network.len(), ADDRESSES_MAX);
        assert!(throttle.wait_s(Ipv4Addr::from(4_999).into(), 5.0).is_some());
        assert!(throttle.wait_s(Ipv4Addr::from(0).into(), 5.0).is_none());
    }
}
