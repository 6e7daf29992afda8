//! Embeds the kernel programs when they were built.
//!
//! They compile for another target with another toolchain, so `cargo xtask ebpf` builds them and
//! leaves the objects where this script looks. Without them the agent compiles all the same and
//! says at run time what is missing.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

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
    embed(&object, "headroom_kernel_object", "HEADROOM_KERNEL_OBJECT");
    let pacing = object.with_file_name("headroom-pacing");
    embed(&pacing, "headroom_pacing_object", "HEADROOM_PACING_OBJECT");
}

/// Copies `object`, if it is there, to where the compiler finds it by `variable` under `cfg`.
fn embed(object: &Path, cfg: &str, variable: &str) {
    let Some(name) = object.file_name().filter(|_name| object.exists()) else { return };
    println!("cargo::rerun-if-changed={}", object.display());
    let copy = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join(name);
    match fs::copy(object, &copy) {
        Ok(_) => {
            println!("cargo::rustc-cfg={cfg}");
            println!("cargo::rustc-env={variable}={}", copy.display());
        }
        Err(error) => println!("cargo::warning=copying {}: {error}", object.display()),
    }
}
