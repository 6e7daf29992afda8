//! Features of sockets beyond amounts: sizes of packets, connections, what TCP measures, drops.

use headroom_telemetry::{Feature, Sample};

use super::{
    quantile,
    rates::{KernelView, Rates},
};
use crate::observe::kernel::Topic;

/// Fills what happened between `before` and `now`. Quantiles of no packets are missing.
pub(super) fn fill(sample: &mut Sample, rates: &mut Rates, before: &KernelView, now: &KernelView) {
    let has = |topic| before.has(topic) && now.has(topic);
    let (was, is) = (&before.counters.net, &now.counters.net);
    let mut set = |sample: &mut Sample, feature, was: u64, is: u64| {
        sample.set_some(feature, rates.of(Some(was), Some(is), 1.0));
    };
    if has(Topic::Network) {
        let sizes = quantile::delta(&was.size_hist, &is.size_hist);
        let median_bytes = sizes.and_then(|sizes| quantile::size_quantile_bytes(&sizes, 0.5));
        sample.set_some(Feature::NetPacketP50, median_bytes);
        let times = quantile::delta(&was.rtt_hist, &is.rtt_hist);
        let median_s = times.and_then(|times| quantile::quantile_s(&times, 0.5));
        sample.set_some(Feature::NetRttP50, median_s);
    }
    if has(Topic::Tcp) {
        set(sample, Feature::NetConnects, was.connects, is.connects);
        set(sample, Feature::NetAccepts, was.accepts, is.accepts);
        set(sample, Feature::NetRetransmits, was.retransmits, is.retransmits);
    }
    if has(Topic::PacketDrops) {
        set(sample, Feature::NetDrops, was.drops, is.drops);
    }
}

#[cfg(test)]
mod tests {
    use headroom_abi::{histogram::bucket, size::size_bucket};
    use headroom_telemetry::{Feature, Sample};

    use super::{KernelView, fill};
    use crate::observe::{kernel::Topic, sampler::rates::Rates};

    fn filled(topics: &[Topic], change: impl Fn(&mut KernelView)) -> Sample {
        let mut before = KernelView::default();
        topics.iter().for_each(|topic| before.allow(*topic));
        let mut now = before.clone();
        change(&mut now);
        let mut sample = Sample::empty(0.0);
        fill(&mut sample, &mut Rates::over(2.0), &before, &now);
        sample
    }

    #[test]
    fn packets_tell_their_median_size_and_round_trip() {
        let sample = filled(&[Topic::Network], |now| {
            now.counters.net.size_hist[size_bucket(1500)] = 4;
            now.counters.net.rtt_hist[bucket(20_000_000)] = 4;
        });
        let bytes = sample.get(Feature::NetPacketP50).unwrap();
        assert!((1024.0..1536.0).contains(&bytes), "{bytes}");
        let round_trip_s = sample.get(Feature::NetRttP50).unwrap();
        assert!((0.016..0.026).contains(&round_trip_s), "{round_trip_s}");
        assert_eq!(sample.get(Feature::NetConnects), None, "another topic");
    }

    #[test]
    fn connections_and_drops_are_rates() {
        let sample = filled(&[Topic::Tcp, Topic::PacketDrops], |now| {
            let net = &mut now.counters.net;
            (net.connects, net.accepts, net.retransmits, net.drops) = (2, 4, 6, 8);
        });
        let expected = [
            (Feature::NetConnects, Some(1.0)),
            (Feature::NetAccepts, Some(2.0)),
            (Feature::NetRetransmits, Some(3.0)),
            (Feature::NetDrops, Some(4.0)),
            (Feature::NetPacketP50, None),
        ];
        for (feature, rate) in expected {
            assert_eq!(sample.get(feature), rate, "{}", feature.name());
        }
    }

    #[test]
    fn nothing_sent_has_no_median() {
        let sample = filled(&[Topic::Network, Topic::Tcp], |_now| {});
        assert_eq!(sample.get(Feature::NetPacketP50), None);
        assert_eq!(sample.get(Feature::NetRttP50), None);
        assert_eq!(sample.get(Feature::NetConnects), Some(0.0));
    }
}
