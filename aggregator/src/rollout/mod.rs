//! What the fleet runs: the verdict over a candidate model, the versions kept on disk, the policies of
//! hosts, and the key that both are signed with.
//!
//! Reading order: [`gate`] (pure: a judgement in, promote or hold out), [`registry`] (versions,
//! which one is current, roll-back), [`policies`], [`keys`].

pub mod gate;
pub mod keys;
pub mod policies;
pub mod registry;

pub use gate::{GateConfig, Hold, Verdict};
pub use keys::SigningKey;
pub use policies::{Policies, PoliciesError, PolicyFor};
pub use registry::{Registry, RegistryError, Version};
