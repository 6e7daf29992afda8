//! The programs that are to be told apart: what any Debian has, and some that can be fetched.
//! Each runs until it is ended, on an input that differs from run to run.

use std::path::{Path, PathBuf};

/// A program under recognition.
#[derive(Clone, Copy, Debug)]
pub(super) struct Program {
    /// Name in the tables.
    pub(super) name: &'static str,
    /// Executables it and its client need.
    pub(super) needs: &'static [&'static str],
    /// Debian packages that bring them.
    pub(super) packages: &'static [&'static str],
    /// Shell script of what is recognised. It runs in a folder of its own with `$IN`, a file of
    /// [`super::input::BYTES`], `$TREE`, a folder of files, `$SEED`, and `$PORT`, which is free.
    pub(super) script: &'static str,
    /// Shell script that makes in the folder what the program needs before it is looked at, outside
    /// the cgroup.
    pub(super) prepare: Option<&'static str>,
    /// Shell script of what makes the load from outside the cgroup, where a server needs it.
    pub(super) client: Option<&'static str>,
}

const fn alone(
    name: &'static str,
    needs: &'static [&'static str],
    packages: &'static [&'static str],
    script: &'static str,
) -> Program {
    Program { name, needs, packages, script, prepare: None, client: None }
}

const fn served(
    name: &'static str,
    needs: &'static [&'static str],
    packages: &'static [&'static str],
    script: &'static str,
    client: &'static str,
) -> Program {
    Program { name, needs, packages, script, prepare: None, client: Some(client) }
}

/// All of them.
pub(super) const PROGRAMS: &[Program] = &[
    alone("gzip", &["gzip"], &["gzip"], "while :; do gzip -6 -c \"$IN\" > /dev/null; done"),
    alone("bzip2", &["bzip2"], &["bzip2"], "while :; do bzip2 -9 -c \"$IN\" > /dev/null; done"),
    alone("xz", &["xz"], &["xz-utils"], "while :; do xz -T1 -4 -c \"$IN\" > /dev/null; done"),
    alone("zstd", &["zstd"], &["zstd"], "while :; do zstd -q -T1 -12 -c \"$IN\" > /dev/null; done"),
    alone(
        "python-json",
        &["python3"],
        &["python3"],
        "exec python3 \"$SCRIPTS/json_work.py\" \"$IN\" \"$SEED\"",
    ),
    alone(
        "python-sieve",
        &["python3"],
        &["python3"],
        "exec python3 \"$SCRIPTS/sieve.py\" \"$SEED\"",
    ),
    alone("perl", &["perl"], &["perl"], "exec perl \"$SCRIPTS/words.pl\" \"$IN\""),
    alone(
        "awk",
        &["awk"],
        &["mawk"],
        "while :; do awk '{ for (i = 1; i <= NF; i++) n[$i]++ } END { for (w in n) s += n[w]; print s }' \"$IN\"; done > /dev/null",
    ),
    alone(
        "sort",
        &["sort"],
        &["coreutils"],
        "while :; do LC_ALL=C sort --parallel=1 -S 16M -T . -k 2 \"$IN\" > /dev/null; done",
    ),
    alone(
        "grep",
        &["grep"],
        &["grep"],
        "while :; do grep -rc \"e[a-f]*t$SEED\" \"$TREE\"; done > /dev/null",
    ),
    alone(
        "find",
        &["find"],
        &["findutils"],
        "while :; do find \"$TREE\" -type f -size +${SEED}k -printf '%s %p\\n'; done > /dev/null",
    ),
    alone(
        "tar",
        &["tar"],
        &["tar"],
        "while :; do tar -cf - -C \"$TREE\" . | cat > /dev/null; done",
    ),
    alone(
        "openssl",
        &["openssl"],
        &["openssl"],
        "while :; do openssl speed -seconds 2 -bytes 16384 aes-256-cbc; done > /dev/null 2>&1",
    ),
    alone(
        "sha256sum",
        &["sha256sum"],
        &["coreutils"],
        "while :; do sha256sum \"$IN\"; done > /dev/null",
    ),
    alone(
        "cc",
        &["cc"],
        &["gcc", "libc6-dev"],
        "while :; do cc -O1 -c \"$SCRIPTS/unit.c\" -DSEED=$SEED -o unit.o; done",
    ),
    alone(
        "sqlite3",
        &["sqlite3"],
        &["sqlite3"],
        "sqlite3 d.db 'create table t (k integer primary key, v text)'; while :; do sqlite3 d.db < \"$SCRIPTS/rows.sql\"; done > /dev/null",
    ),
    alone(
        "dd-direct",
        &["dd"],
        &["coreutils"],
        "while :; do dd if=/dev/zero of=direct bs=64k count=400 oflag=direct conv=notrunc; done 2> /dev/null",
    ),
    alone(
        "find-exec",
        &["find", "sh"],
        &["findutils"],
        "while :; do find \"$TREE\" -type f -name '*[0-9a-$SEED]*' -exec true {} \\;; done > /dev/null",
    ),
    alone("node", &["node"], &["nodejs"], "exec node \"$SCRIPTS/tree.js\" \"$SEED\""),
    alone(
        "git",
        &["git"],
        &["git"],
        "git init -q r; cp \"$IN\" r/f; cd r; while :; do git add -A; git -c user.name=n -c user.email=e commit -qm c; head -c 200000 /dev/urandom > g; git gc -q; done > /dev/null 2>&1",
    ),
    alone(
        "brotli",
        &["brotli"],
        &["brotli"],
        "while :; do brotli -q 6 -c \"$IN\" > /dev/null; done",
    ),
    alone("pigz", &["pigz"], &["pigz"], "while :; do pigz -6 -p 2 -c \"$IN\" > /dev/null; done"),
    alone("lua", &["lua5.4"], &["lua5.4"], "exec lua5.4 \"$SCRIPTS/bodies.lua\" \"$SEED\""),
    alone(
        "ruby",
        &["ruby"],
        &["ruby"],
        // What is unpacked is not where Ruby looks for its own.
        "R=$(ls -d \"$UNPACKED\"/usr/lib/*/ruby/3* \"$UNPACKED\"/usr/lib/ruby/3* 2> /dev/null | paste -sd:); RUBYLIB=$R exec ruby --disable-gems \"$SCRIPTS/text.rb\" \"$IN\" \"$SEED\"",
    ),
    alone(
        "php",
        &["php.default"],
        &["php-cli"],
        "exec php.default -n \"$SCRIPTS/templates.php\" \"$SEED\"",
    ),
    alone(
        "sysbench-cpu",
        &["sysbench"],
        &["sysbench"],
        "exec sysbench cpu --time=0 --events=0 --cpu-max-prime=20000 run > /dev/null",
    ),
    alone(
        "sysbench-memory",
        &["sysbench"],
        &["sysbench"],
        "exec sysbench memory --time=0 --memory-block-size=64K --memory-total-size=1000T run > /dev/null",
    ),
    alone(
        "stress-ng-vm",
        &["stress-ng"],
        &["stress-ng"],
        "exec stress-ng --vm 1 --vm-bytes 32M --temp-path . --timeout 0 > /dev/null 2>&1",
    ),
    alone(
        "fio",
        &["fio"],
        &["fio"],
        "exec fio --name=f --rw=randrw --size=16M --bs=8k --ioengine=psync --direct=1 --randseed=$SEED --time_based --runtime=1000 > /dev/null",
    ),
    served(
        "python-http",
        &["python3"],
        &["python3"],
        "exec python3 \"$SCRIPTS/server.py\" \"$TREE\" > /dev/null 2>&1",
        "exec python3 \"$SCRIPTS/client.py\" \"$SEED\" 250",
    ),
    served(
        "redis",
        &["redis-server", "redis-benchmark"],
        &["redis-server", "redis-tools"],
        "exec redis-server --port 0 --unixsocket \"$PWD/s\" --save '' > /dev/null",
        "while [ ! -S s ]; do sleep 0.1; done; while :; do redis-benchmark -s \"$PWD/s\" -q -n 20000 -r 1000$SEED -t set,get,incr,lpush,sadd,hset; done > /dev/null 2>&1",
    ),
    served(
        "memcached",
        &["memcached", "python3"],
        &["memcached"],
        "exec memcached -u root -s m -m 64 -t 2",
        "exec python3 \"$SCRIPTS/memcached_client.py\" \"$SEED\"",
    ),
    Program {
        name: "nginx",
        needs: &["nginx", "ab"],
        packages: &["nginx", "apache2-utils"],
        script: "exec nginx -e stderr -p \"$PWD\" -c \"$PWD/nginx.conf\" 2> /dev/null",
        prepare: Some("sh -e \"$SCRIPTS/nginx.sh\""),
        client: Some(
            "sleep 0.3; while :; do for at in 1 2 $SEED 8; do ab -q -c 8 -n 2000 \"http://127.0.0.1:$PORT/$at/$at\"; done; done > /dev/null 2>&1",
        ),
    },
    Program {
        name: "postgres",
        needs: &["postgres", "initdb", "pgbench", "setpriv"],
        packages: &["postgresql", "postgresql-contrib", "util-linux"],
        script: "exec setpriv --reuid=65534 --regid=65534 --clear-groups postgres -D data > /dev/null 2>&1",
        prepare: Some("sh -e \"$SCRIPTS/postgres.sh\""),
        client: Some(
            "while :; do pgbench -h \"$PWD\" -U bench -c 2 -T 1000 --random-seed=$SEED postgres || sleep 0.2; done > /dev/null 2>&1",
        ),
    },
    served(
        "iperf3",
        &["iperf3"],
        &["iperf3"],
        "exec iperf3 -s -p $PORT > /dev/null 2>&1",
        "while :; do iperf3 -c 127.0.0.1 -p $PORT -b 2G -t 1000 || sleep 0.2; done > /dev/null 2>&1",
    ),
];

/// Files the programs work with.
pub(super) const SCRIPTS: &[(&str, &str)] = &[
    ("json_work.py", include_str!("work/json_work.py")),
    ("sieve.py", include_str!("work/sieve.py")),
    ("server.py", include_str!("work/server.py")),
    ("client.py", include_str!("work/client.py")),
    ("words.pl", include_str!("work/words.pl")),
    ("tree.js", include_str!("work/tree.js")),
    ("unit.c", include_str!("work/unit.c")),
    ("rows.sql", include_str!("work/rows.sql")),
    ("nginx.sh", include_str!("work/nginx.sh")),
    ("postgres.sh", include_str!("work/postgres.sh")),
    ("memcached_client.py", include_str!("work/memcached_client.py")),
    ("bodies.lua", include_str!("work/bodies.lua")),
    ("text.rb", include_str!("work/text.rb")),
    ("templates.php", include_str!("work/templates.php")),
];

/// Writes [`SCRIPTS`] below `folder` and returns where.
pub(super) fn write_scripts(folder: &Path) -> std::io::Result<PathBuf> {
    let scripts = folder.join("scripts");
    std::fs::create_dir_all(&scripts)?;
    for (name, text) in SCRIPTS {
        std::fs::write(scripts.join(name), text)?;
    }
    Ok(scripts)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::PROGRAMS;

    #[test]
    fn names_are_unique_and_fit_into_a_path() {
        let names: BTreeSet<&str> = PROGRAMS.iter().map(|program| program.name).collect();
        assert_eq!(names.len(), PROGRAMS.len());
        for name in names {
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'), "{name}");
        }
    }
}
