//! Kernel programs of the Headroom agent: one ELF object for every supported kernel.
//!
//! Reading order: [`kernel`] (where fields of kernel structures are), [`identity`] (cgroup to
//! slot), [`maps`], then one file per signal in [`probes`]. Programs keep exact cumulative counts;
//! user space takes differences. Nothing here changes what the kernel does.

#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "the BPF target has no stable atomic addition")]

mod identity;
mod kernel;
mod maps;
mod probes;

/// Helpers that programs here call are open to programs under a licence compatible with the GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Never reached: the verifier refuses a program with a path to a panic.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
