set -e
mkdir data
# The server refuses to run as root.
chown 65534:65534 . data
as="setpriv --reuid=65534 --regid=65534 --clear-groups"
$as initdb -D data -U bench -A trust --no-sync -E UTF8 --locale=C
cat >> data/postgresql.conf <<END
unix_socket_directories = '$PWD'
listen_addresses = ''
shared_buffers = 32MB
END
$as pg_ctl -D data -w -s -l log start
$as pgbench -i -s 1 -q -h "$PWD" -U bench postgres
$as pg_ctl -D data -w -s stop
