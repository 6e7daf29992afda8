//! Every bound of the protocol in one place; both sides refuse what exceeds them.

/// Protocol version of this program; raised with every change of a message.
pub const PROTOCOL: u32 = 5;
/// The oldest protocol version an aggregator of this program serves. Version 3 sends batches in order on
/// the control stream, knows neither [`crate::Message::Wait`] nor [`crate::Message::Settled`], and takes
/// an acknowledgement for one of everything before it, which it is where order is kept.
pub const PROTOCOL_OLDEST: u32 = 3;
/// The oldest protocol version an agent of this program speaks: version 4 has no policies.
pub const PROTOCOL_OLDEST_AGENT: u32 = 4;
/// Application protocol named in the TLS handshake.
pub const ALPN: &[u8] = b"headroom/1";
/// Longest frame body, bytes.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// Most samples in one batch.
pub const SAMPLES_MAX: usize = 4_096;
/// Most forecasts in one batch.
pub const FORECASTS_MAX: usize = 16_384;
/// Most limits in one batch.
pub const LIMITS_MAX: usize = 16_384;
/// Most applied actions in one batch.
pub const ACTIONS_MAX: usize = 4_096;
/// Most sketches in one batch; a workload has at most two.
pub const SKETCHES_MAX: usize = 8_192;
/// Most workloads defined by one frame.
pub const DEFINITIONS_MAX: usize = 4_096;
/// Most workloads defined on one connection; an agent with more reconnects and starts afresh.
pub const WORKLOADS_MAX: usize = 65_536;
/// Most probe states in one frame.
pub const PROBES_MAX: usize = 256;
/// Longest text in any field, bytes: paths, names and reasons.
pub const TEXT_BYTES_MAX: usize = 4_096;
/// Batches of one agent sent and not yet acknowledged at most; each has a stream of its own.
pub const IN_FLIGHT_MAX: usize = 16;
/// Ranges of numbers above a watermark that are remembered of one life.
pub const NUMBER_RANGES_MAX: usize = 1_024;
/// Longest wait an aggregator may ask for, seconds.
pub const WAIT_S_MAX: u32 = 300;
/// Longest node name, bytes.
pub const NODE_BYTES_MAX: usize = 253;
