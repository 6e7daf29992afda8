//! Where the programs that are to be told apart lie: on this machine, or in Debian's packages unpacked
//! below `target`, which installs nothing.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::programs::Program;
use crate::process;
use crate::setup::debian;

/// Folders with executables, and what those need that were unpacked.
pub(super) struct Executables {
    /// In the order in which they are searched, this machine's own first.
    folders: Vec<PathBuf>,
    unpacked: PathBuf,
}

/// A program that cannot run here, and why.
pub(super) type Missing = (&'static str, String);

impl Executables {
    /// What is on `PATH` and below `unpacked`.
    fn find_all(unpacked: PathBuf) -> Self {
        let path = env::var_os("PATH").unwrap_or_default();
        let mut folders: Vec<PathBuf> = env::split_paths(&path).collect();
        for root in [Path::new("/"), unpacked.as_path()] {
            folders.extend(["usr/bin", "usr/sbin"].map(|folder| root.join(folder)));
            // One folder for each version of the server, none of them on `PATH`.
            folders.extend(subfolders(&root.join("usr/lib/postgresql")).map(|at| at.join("bin")));
        }
        Self { folders, unpacked }
    }

    /// Looks for what `chosen` need, and unpacks what is not there unless `offline`. Returns those
    /// programs that still cannot run, with the reason.
    pub(super) fn gather(root: &Path, chosen: &[Program], offline: bool) -> (Self, Vec<Missing>) {
        let unpacked = root.join("target/xtask/programs");
        let mut found = Self::find_all(unpacked.clone());
        let mut missing = Vec::new();
        for program in chosen {
            let Some(lacks) = found.first_missing(program) else { continue };
            let fetched = if offline {
                Err("and nothing is fetched (--offline)".to_owned())
            } else {
                debian::unpack(program.packages, "it is to be recognised; kept", &unpacked)
            };
            found = Self::find_all(unpacked.clone());
            match (fetched, found.first_missing(program)) {
                (_, None) => {}
                (Ok(()), Some(lacks)) => {
                    let of = program.packages.join(", ");
                    missing.push((program.name, format!("{lacks} is not in {of}")));
                }
                (Err(why), Some(_)) => {
                    missing.push((program.name, format!("{lacks} is not there: {why}")));
                }
            }
        }
        (found, missing)
    }

    /// What the shells of `program` find: the folders, and the libraries that were unpacked, these only
    /// where it needs one of them. A longer search for libraries would be part of what is recognised.
    pub(super) fn environment(&self, program: &Program) -> Vec<(&'static str, OsString)> {
        let joined = |paths: &[PathBuf]| env::join_paths(paths).unwrap_or_default();
        let mut variables = vec![("PATH", joined(&self.folders))];
        let is_unpacked = |name: &&str| {
            process::find_in(&self.folders, name).is_some_and(|at| at.starts_with(&self.unpacked))
        };
        if program.needs.iter().any(is_unpacked) {
            variables.push(("LD_LIBRARY_PATH", joined(&self.libraries())));
        }
        variables.push(("UNPACKED", self.unpacked.clone().into_os_string()));
        variables
    }

    fn first_missing(&self, program: &Program) -> Option<&'static str> {
        program.needs.iter().copied().find(|name| process::find_in(&self.folders, name).is_none())
    }

    /// The architecture's folders of libraries, and those in them: some packages keep private ones.
    fn libraries(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for top in ["usr/lib", "lib"] {
            for folder in subfolders(&self.unpacked.join(top)) {
                let is_architecture = folder
                    .file_name()
                    .is_some_and(|name| name.to_string_lossy().contains("-linux-"));
                if is_architecture {
                    found.push(folder.clone());
                    found.extend(subfolders(&folder));
                }
            }
        }
        found
    }
}

/// Folders directly in `folder`, in order; none where it is not there.
fn subfolders(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect();
    found.sort();
    found.into_iter()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::programs::{PROGRAMS, Program};
    use super::Executables;

    #[test]
    fn an_unpacked_program_is_found_with_its_libraries_and_others_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let triplet = folder.path().join("usr/lib/x86_64-linux-gnu");
        for made in ["usr/bin", "usr/lib/x86_64-linux-gnu/private", "usr/lib/ruby"] {
            fs::create_dir_all(folder.path().join(made)).unwrap();
        }
        let server = folder.path().join("usr/bin/headroom-test-server");
        fs::write(&server, "").unwrap();
        fs::set_permissions(&server, fs::Permissions::from_mode(0o755)).unwrap();
        let found = Executables::find_all(folder.path().to_owned());
        let mut program = PROGRAMS[0];
        program.needs = &["sh"];
        let variable = |program: &Program, name| {
            let all = found.environment(program);
            all.into_iter().find(|(found, _)| *found == name).map(|(_, value)| value)
        };
        assert_eq!(variable(&program, "LD_LIBRARY_PATH"), None);
        program.needs = &["sh", "headroom-test-server"];
        assert_eq!(found.first_missing(&program), None);
        let libraries = std::env::join_paths([triplet.clone(), triplet.join("private")]).unwrap();
        assert_eq!(variable(&program, "LD_LIBRARY_PATH"), Some(libraries));
        program.needs = &["headroom-test-none"];
        assert_eq!(found.first_missing(&program), Some("headroom-test-none"));
    }
}
