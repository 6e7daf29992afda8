//! What a cgroup path tells of who is in it, and names without the parts that differ every start.
//!
//! Pure: paths in, parts of paths out. Systemd and cgroupfs drivers of the kubelet, Docker,
//! containerd, CRI-O and podman name cgroups differently; all are recognised at any depth.

/// Length of a container id, hexadecimal digits.
const CONTAINER_ID_DIGITS: usize = 64;

/// Letters and digits that Kubernetes makes random name suffixes of: without vowels and without
/// digits that look like letters, so that no words come out.
const KUBERNETES_SUFFIX: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// A container found in a path.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ContainerInPath<'a> {
    /// Its whole id, 64 hexadecimal digits.
    pub id: &'a str,
    /// What of the path is inside the container, beginning with `/`; empty for the container's own
    /// cgroup.
    pub within: &'a str,
}

/// The innermost container in `path`; a container that runs in another is who it is.
pub fn container_in(path: &str) -> Option<ContainerInPath<'_>> {
    let mut end = path.len();
    loop {
        let start = path[..end].rfind('/').map_or(0, |slash| slash + 1);
        if let Some(id) = container_id(&path[start..end]) {
            return Some(ContainerInPath { id, within: &path[end..] });
        }
        end = start.checked_sub(1)?;
    }
}

/// The container id in the name of a cgroup, with or without the runtime's prefix and `.scope`.
///
/// The process that watches over a container (`crio-conmon-*`, `libpod-conmon-*`) has the id in
/// its name too, and is not the container.
pub fn container_id(name: &str) -> Option<&str> {
    let stem = name.strip_suffix(".scope").unwrap_or(name);
    let start = stem.len().checked_sub(CONTAINER_ID_DIGITS)?;
    let (prefix, id) = (stem.get(..start)?, stem.get(start..)?);
    let prefix_ends_cleanly = prefix.is_empty() || prefix.ends_with(['-', ':']);
    let is_monitor = prefix.ends_with("conmon-");
    (prefix_ends_cleanly && !is_monitor && is_hex(id)).then_some(id)
}

/// The pod's uid in `path`, with dashes, from the innermost component that has one.
pub fn pod_uid(path: &str) -> Option<String> {
    path.rsplit('/').find_map(pod_uid_in).map(|uid| uid.replace('_', "-"))
}

/// The uid as written in the name of a pod's cgroup: `pod1b4e..`, `kubepods-burstable-pod1b4e_..`.
fn pod_uid_in(name: &str) -> Option<&str> {
    const UUID_BYTES: usize = 36;
    const DIGEST_DIGITS: usize = 32;
    let name = name.split(':').next().unwrap_or(name);
    let name = name.strip_suffix(".slice").unwrap_or(name);
    let at = name.rfind("pod")?;
    let uid = &name[at + 3..];
    let starts_cleanly = at == 0 || name[..at].ends_with('-');
    let is_uuid = uid.len() == UUID_BYTES && uid.split(['-', '_']).all(is_hex);
    let is_digest = uid.len() == DIGEST_DIGITS && is_hex(uid);
    (starts_cleanly && (is_uuid || is_digest)).then_some(uid)
}

/// The innermost systemd service or scope in `path`.
pub fn unit(path: &str) -> Option<&str> {
    path.rsplit('/').find(|name| name.ends_with(".service") || name.ends_with(".scope"))
}

/// The innermost systemd slice in `path`.
pub fn slice(path: &str) -> Option<&str> {
    path.rsplit('/').find(|name| name.ends_with(".slice"))
}

/// `path` with every component stable, see [`stable_unit`].
pub fn stable_path(path: &str) -> String {
    path.split('/').map(stable_unit).collect::<Vec<_>>().join("/")
}

/// The name of a unit or cgroup with `*` for what its maker generates anew at every start.
///
/// Generated are ids in hexadecimal (eight digits or more), UUIDs, a pod's uid, and in transient
/// units (`*.scope`, `run-*`) counters and process ids. An instance of a template is left out when
/// it is made of such parts or of several numbers, as that of socket-activated services; an
/// instance with a name (`postgresql@15-main`, `user@1000`) is who it is.
pub fn stable_unit(name: &str) -> String {
    if let Some(uid) = pod_uid_in(name) {
        return name.replace(uid, "*");
    }
    let (stem, suffix) = match name.rsplit_once('.') {
        Some((stem, kind @ ("service" | "scope" | "slice"))) => (stem, format!(".{kind}")),
        _ => (name, String::new()),
    };
    if let Some((template, instance)) = stem.split_once('@') {
        let shown = if is_generated_instance(instance) { "" } else { instance };
        return format!("{template}@{shown}{suffix}");
    }
    let is_transient = suffix == ".scope" || stem.starts_with("run-");
    format!("{}{suffix}", stable_parts(stem, is_transient))
}

fn stable_parts(stem: &str, is_transient: bool) -> String {
    const UUID_DIGITS: [usize; 5] = [8, 4, 4, 4, 12];
    let parts: Vec<&str> = stem.split('-').collect();
    let mut shown: Vec<&str> = Vec::with_capacity(parts.len());
    let mut i = 0;
    while i < parts.len() {
        let is_uuid = parts.get(i..i + UUID_DIGITS.len()).is_some_and(|five| {
            five.iter().zip(UUID_DIGITS).all(|(part, digits)| part.len() == digits && is_hex(part))
        });
        let is_generated = is_uuid || is_generated_part(parts[i], is_transient);
        shown.push(if is_generated { "*" } else { parts[i] });
        i += if is_uuid { UUID_DIGITS.len() } else { 1 };
    }
    shown.join("-")
}

fn is_generated_part(part: &str, is_transient: bool) -> bool {
    let has_digit = part.bytes().any(|byte| byte.is_ascii_digit());
    // systemd-run writes a letter before its ids: r for random, u for counted, p and i for processes.
    let after_letter = part.strip_prefix(['r', 'u', 'p', 'i']).unwrap_or(part);
    let is_counter = is_digits(after_letter) || (after_letter.len() >= 8 && is_hex(after_letter));
    (part.len() >= 8 && has_digit && is_hex(part)) || (is_transient && has_digit && is_counter)
}

fn is_generated_instance(instance: &str) -> bool {
    let parts: Vec<&str> =
        instance.split(['-', '_', ':']).filter(|part| !part.is_empty()).collect();
    let is_counted = parts.len() > 1 && parts.iter().all(|part| is_digits(part));
    is_counted || (!parts.is_empty() && stable_parts(instance, false) == "*")
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// The name of what made a pod: its name without generated suffixes.
///
/// A Deployment appends a hash and a random suffix, a DaemonSet or Job a random suffix, a CronJob
/// the minute and a random suffix. The number of a StatefulSet's pod stays: it comes back with the
/// pod. A name that happens to look like a suffix is cut too, which joins, and never splits.
pub fn pod_owner(pod: &str) -> &str {
    let is_random =
        |text: &str| !text.is_empty() && text.bytes().all(|byte| KUBERNETES_SUFFIX.contains(&byte));
    let Some((owner, _suffix)) = pod
        .rsplit_once('-')
        .filter(|(owner, suffix)| !owner.is_empty() && suffix.len() == 5 && is_random(suffix))
    else {
        return pod;
    };
    let made_by_another = owner.rsplit_once('-').filter(|(maker, suffix)| {
        let is_hash = (6..=10).contains(&suffix.len()) && is_random(suffix);
        let is_minute = suffix.len() >= 8 && is_digits(suffix);
        !maker.is_empty() && (is_hash || is_minute)
    });
    made_by_another.map_or(owner, |(maker, _suffix)| maker)
}

#[cfg(test)]
mod tests {
    use proptest::proptest;

    use super::{
        ContainerInPath, container_in, pod_owner, pod_uid, slice, stable_path, stable_unit, unit,
    };

    #[test]
    fn a_container_is_found_at_any_depth_and_the_innermost_wins() {
        let (outer, inner) = ("a1".repeat(32), "b2".repeat(32));
        let path = format!("/docker/{outer}/kubelet/kubepods/pod1/{inner}/system.slice/x.service");
        let expected = ContainerInPath { id: &inner, within: "/system.slice/x.service" };
        assert_eq!(container_in(&path), Some(expected));
        let own = format!("/docker/{outer}");
        assert_eq!(container_in(&own), Some(ContainerInPath { id: &outer, within: "" }));
        let colons = format!("/system.slice/kubepods-pod1.slice:cri-containerd:{inner}");
        assert_eq!(container_in(&colons).map(|found| found.id), Some(inner.as_str()));
        assert_eq!(container_in(&format!("/machine.slice/libpod-conmon-{inner}.scope")), None);
        assert_eq!(container_in("/system.slice/nginx.service"), None);
    }

    #[test]
    fn pods_are_told_by_either_driver() {
        let uid = "1b4e28ba-2fa1-11d2-883f-0016d3cca427";
        let escaped = uid.replace('-', "_");
        for path in [
            format!("/kubepods/burstable/pod{uid}/abc"),
            format!("/kubepods.slice/kubepods-burstable-pod{escaped}.slice/cri-containerd-x.scope"),
            format!("/system.slice/kubepods-pod{escaped}.slice:cri-containerd:x"),
        ] {
            assert_eq!(pod_uid(&path).as_deref(), Some(uid), "{path}");
        }
        let static_pod = "0123456789abcdef0123456789abcdef";
        assert_eq!(pod_uid(&format!("/kubepods/pod{static_pod}")).as_deref(), Some(static_pod));
        assert_eq!(pod_uid("/podman/tripod-x"), None);
    }

    #[test]
    fn units_and_slices_are_the_innermost() {
        let path = "/user.slice/user-1000.slice/user@1000.service/app.slice/x.scope/child";
        assert_eq!(unit(path), Some("x.scope"));
        assert_eq!(slice(path), Some("app.slice"));
        assert_eq!((unit("/a"), slice("/a")), (None, None));
    }

    #[test]
    fn generated_parts_of_units_are_left_out() {
        for (name, stable) in [
            ("nginx.service", "nginx.service"),
            ("run-u123.service", "run-*.service"),
            ("run-r0123456789abcdef0123456789abcdef.scope", "run-*.scope"),
            ("run-p4123-i4567.scope", "run-*-*.scope"),
            ("session-12.scope", "session-*.scope"),
            ("app-gnome-firefox-4312.scope", "app-gnome-firefox-*.scope"),
            ("vte-spawn-1b4e28ba-2fa1-11d2-883f-0016d3cca427.scope", "vte-spawn-*.scope"),
            ("postgresql@15-main.service", "postgresql@15-main.service"),
            ("user@1000.service", "user@1000.service"),
            ("sshd@3-10.0.0.1:22-10.0.0.2:999.service", "sshd@3-10.0.0.1:22-10.0.0.2:999.service"),
            ("systemd-coredump@3-1234-0.service", "systemd-coredump@.service"),
            ("job@1b4e28ba-2fa1-11d2-883f-0016d3cca427.service", "job@.service"),
            ("user-1000.slice", "user-1000.slice"),
            ("feedback.service", "feedback.service"),
        ] {
            assert_eq!(stable_unit(name), stable);
        }
        let uid = "1b4e28ba_2fa1_11d2_883f_0016d3cca427";
        let path = format!("/kubepods.slice/kubepods-pod{uid}.slice");
        assert_eq!(stable_path(&path), "/kubepods.slice/kubepods-pod*.slice");
    }

    #[test]
    fn pods_are_named_by_what_made_them() {
        for (pod, owner) in [
            ("web-7d4b9c6f5d-x7k2p", "web"),
            ("my-web-5c689d88bb-qqs9m", "my-web"),
            ("kube-proxy-x7k2p", "kube-proxy"),
            ("backup-28391040-x7k2p", "backup"),
            ("db-0", "db-0"),
            ("etcd-node1", "etcd-node1"),
            ("-x7k2p", "-x7k2p"),
            ("", ""),
        ] {
            assert_eq!(pod_owner(pod), owner);
        }
    }

    proptest! {
        #[test]
        fn hostile_names_never_panic(path in "(/?(pod|docker-|[0-9a-f]{64}|é|@|-|\\.scope|\\.slice|\u{1b}|:){0,6}){0,4}") {
            container_in(&path);
            pod_uid(&path);
            stable_path(&path);
            pod_owner(&path);
        }
    }
}
