//! Embeds the kernel programs when they were built.
//!
//! They compile for another target with another toolchain, so `cargo xtask ebpf` builds them and
//! leaves the object where this script looks. Without it the agent compiles all the same and says
//! at run time what is missing.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=HEADROOM_BPF_OBJECT");
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let object = match env::var_os("HEADROOM_BPF_OBJECT") {
        Some(path) => PathBuf::from(path),
        None => {
            let dir = manifest.join("../target/bpf");
            // Cargo watches the directory; a path that does not exist would make it rebuild the
            // agent every time.
            if let Err(error) = fs::create_dir_all(&dir) {
                println!("cargo::warning=making {}: {error}", dir.display());
            }
            println!("cargo::rerun-if-changed={}", dir.display());
            dir.join("headroom-agent-ebpf")
        }
    };
    if !object.exists() {
        return;
    }
    println!("cargo::rerun-if-changed={}", object.display());
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let copy = out_dir.join("headroom-agent-ebpf");
    match fs::copy(&object, &copy) {
        Ok(_) => {
            println!("cargo::rustc-cfg=headroom_kernel_object");
            println!("cargo::rustc-env=HEADROOM_KERNEL_OBJECT={}", copy.display());
        }
        Err(error) => println!("cargo::warning=copying {}: {error}", object.display()),
    }
}
