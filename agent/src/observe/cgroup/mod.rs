//! Cgroups as this host lays them out: where controllers live, which groups exist, what they say.
//!
//! Reading order: [`layout`] (mount points and controllers), [`tree`] (which cgroups are workloads),
//! [`parse`] (pure readers of file contents), `places` (which file tells what), [`read`] (held-open
//! files of one workload), [`look`] (which need no reading), [`watch`] (who writes their limits),
//! [`above`] (limits of the cgroups above workloads), [`weights`] (who obeys weights of block I/O).
//! `join` finds workloads with two paths, by container id or by what `membership` tells of their tasks.

pub mod above;
pub mod devices;
pub mod held;
pub mod join;
pub mod knobs;
pub mod layout;
pub mod look;
mod membership;
pub mod parse;
mod places;
pub mod read;
mod skip;
mod take;
pub mod tree;
mod walk;
pub mod watch;
pub mod weights;

pub use layout::{Layout, LayoutError, Mode, Version};
pub use look::{Look, Since};
pub use read::{Moment, Reading, WorkloadFiles};
pub use tree::{Tree, TreeConfig};
