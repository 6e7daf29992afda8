//! State of runtimes as they write it, cut to what names a container, and what a hostile one could.

use std::{fs, path::Path};

use headroom_telemetry::{ContainerNames, Fact, Runtime, Workload};
use proptest::{collection::vec, prelude::any, proptest};

use super::{ContainerFiles, LOOKS_MAX, bounded::FILE_BYTES_MAX, docker, oci};

const DOCKER: &str = r#"{"StreamConfig":{},"State":{"Running":true,"Pid":812},"ID":"x",
"Created":"2026-01-02T03:04:05Z","Managed":false,"Path":"/docker-entrypoint.sh","Args":["nginx"],
"Config":{"Hostname":"b1","User":"","Env":["PATH=/usr/bin"],"Image":"nginx:1.27",
"Labels":{"com.docker.compose.project":"shop","com.docker.compose.service":"web",
"com.docker.compose.container-number":"1","maintainer":"x"}},
"Image":"sha256:0","NetworkSettings":{"Networks":{}},"Name":"/shop-web-1","RestartCount":0}"#;

const CONTAINERD: &str = r#"{"ociVersion":"1.1.0","process":{"args":["/app"],"env":["A=b"]},
"linux":{"cgroupsPath":"kubepods-burstable-pod1.slice:cri-containerd:x"},
"annotations":{"io.kubernetes.cri.container-name":"app","io.kubernetes.cri.container-type":"container",
"io.kubernetes.cri.image-name":"registry.example/team/app:v3","io.kubernetes.cri.sandbox-id":"y",
"io.kubernetes.cri.sandbox-name":"web-7d4b9c6f5d-x7k2p","io.kubernetes.cri.sandbox-namespace":"shop",
"io.kubernetes.cri.sandbox-uid":"1b4e28ba-2fa1-11d2-883f-0016d3cca427"}}"#;

const CRIO: &str = r#"{"annotations":{"io.kubernetes.container.name":"db",
"io.kubernetes.pod.name":"db-0","io.kubernetes.pod.namespace":"shop",
"io.kubernetes.cri-o.ContainerType":"container","io.kubernetes.cri-o.ImageName":"docker.io/db:9",
"io.container.manager":"cri-o"}}"#;

fn id() -> String {
    "a1".repeat(32)
}

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn key(root: &Path, path: &str) -> String {
    let names = ContainerFiles::new(root).names(&id(), 0).clone();
    Workload::named(path, Some(names.into_known().unwrap())).model_key.0
}

#[test]
fn every_runtime_is_read_where_it_keeps_state() {
    let cri = "run/containerd/io.containerd.runtime.v2.task/k8s.io";
    let storage = "run/containers/storage/overlay-containers";
    for (file, text, expected) in [
        (format!("var/lib/docker/containers/{}/config.v2.json", id()), DOCKER, "docker:shop/web"),
        (format!("{cri}/{}/config.json", id()), CONTAINERD, "k8s:shop/web/app"),
        (format!("{storage}/{}/userdata/config.json", id()), CRIO, "k8s:shop/db-0/db"),
    ] {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), &file, text);
        assert_eq!(key(root.path(), &format!("/x/{}", id())), expected, "{file}");
    }
    let names = docker(DOCKER.as_bytes()).unwrap();
    assert_eq!(names.container.as_deref(), Some("shop-web-1"));
    assert_eq!(names.image.as_deref(), Some("nginx:1.27"));
    let names = oci(CRIO.as_bytes(), Runtime::CriO).unwrap();
    assert_eq!((names.runtime, names.pod.as_deref()), (Runtime::CriO, Some("db-0")));
}

#[test]
fn the_container_that_holds_a_pod_together_is_not_taken_for_its_program() {
    let pause = CONTAINERD.replace("\"container\"", "\"sandbox\"");
    let names = oci(pause.as_bytes(), Runtime::Containerd).unwrap();
    let workload = Workload::named(&format!("/x/{}", id()), Some(names));
    assert_eq!(workload.model_key.0, "k8s:shop/web/POD");
}

#[test]
fn names_written_after_the_cgroup_are_found_later_and_then_kept() {
    let root = tempfile::tempdir().unwrap();
    let mut files = ContainerFiles::new(root.path());
    assert!(files.names(&id(), 0).reason().unwrap().contains("no runtime"));
    let file = format!("var/lib/docker/containers/{}/config.v2.json", id());
    write(root.path(), &file, DOCKER);
    assert!(!files.names(&id(), 1).is_known(), "not asked at every tick");
    assert!(files.names(&id(), 2).is_known());
    fs::remove_file(root.path().join(file)).unwrap();
    assert!(files.names(&id(), 3).is_known());
}

#[test]
fn a_container_without_state_is_given_up() {
    let root = tempfile::tempdir().unwrap();
    let mut files = ContainerFiles::new(root.path());
    for tick in 0..1_000 {
        files.names(&id(), tick);
    }
    assert_eq!(files.remembered[&id()].looks, LOOKS_MAX);
}

#[test]
fn state_that_is_too_large_or_no_file_is_refused_with_the_reason() {
    let root = tempfile::tempdir().unwrap();
    let file = format!("var/lib/docker/containers/{}/config.v2.json", id());
    let reason = || match ContainerFiles::new(root.path()).names(&id(), 0) {
        Fact::Unknown(reason) => reason.clone(),
        other => panic!("{other:?}"),
    };
    write(root.path(), &file, &" ".repeat(usize::try_from(FILE_BYTES_MAX).unwrap() + 1));
    assert!(reason().contains("more than"), "{}", reason());
    write(root.path(), &file, "{\"Name\":7}");
    assert!(reason().contains("not understood"), "{}", reason());
    write(root.path(), &file, &"[".repeat(100_000));
    assert!(reason().contains("not understood"), "{}", reason());
    fs::remove_file(root.path().join(&file)).unwrap();
    let status = std::process::Command::new("mkfifo").arg(root.path().join(&file)).status();
    if status.is_ok_and(|status| status.success()) {
        assert!(reason().contains("not a regular file"), "{}", reason());
    }
}

#[test]
fn names_that_would_move_a_cursor_are_written_out() {
    let names = docker(br#"{"Name":"/\u001b[2Jx","Config":{"Image":"a\u202eb"}}"#).unwrap();
    assert_eq!(names.container.as_deref(), Some("\\u{1b}[2Jx"));
    assert_eq!(names.image.as_deref(), Some("a\\u{202e}b"));
    let long = format!("{{\"Name\":\"{}\"}}", "n".repeat(100_000));
    let kept = docker(long.as_bytes()).unwrap().container.unwrap();
    assert_eq!(kept.len(), ContainerNames::TEXT_BYTES_MAX);
}

proptest! {
    #[test]
    fn hostile_state_never_panics(bytes in vec(any::<u8>(), 0..400)) {
        docker(&bytes);
        oci(&bytes, Runtime::CriO);
    }
}
