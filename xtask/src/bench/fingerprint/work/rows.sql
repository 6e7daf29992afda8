pragma journal_mode = wal;
begin;
with recursive n(i) as (select 1 union all select i + 1 from n where i < 5000)
insert into t (v) select hex(randomblob(24)) from n;
commit;
select count(*), max(v) from t where v like '%A1%';
update t set v = v || 'x' where k % 97 = abs(random()) % 97;
delete from t where k % 3 = 0;
