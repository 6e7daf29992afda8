//! Which model the fleet runs: the verdict over a candidate, the versions kept on disk, and the key
//! they are signed with.
//!
//! Reading order: [`gate`] (pure: a judgement in, promote or hold out), [`registry`] (versions,
//! which one is current, roll-back), [`keys`].

pub mod gate;
pub mod keys;
pub mod registry;

pub use gate::{GateConfig, Hold, Verdict};
pub use keys::SigningKey;
pub use registry::{Registry, RegistryError, Version};
