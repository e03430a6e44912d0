--
-- Moving the extension to another schema, dropping it and creating it again
--
CREATE SCHEMA elsewhere;
ALTER EXTENSION pg_meminfo SET SCHEMA elsewhere;
SELECT to_regproc('get_all_smaps') IS NULL AS not_in_path;
SELECT count(*) > 0 AS ok FROM elsewhere.get_all_smaps();
SELECT count(*) > 0 AS ok FROM elsewhere.pg_meminfo_smaps(pg_backend_pid());
SELECT count(*) AS own FROM elsewhere.smap_summary WHERE pid = pg_backend_pid();

DROP EXTENSION pg_meminfo;
SELECT count(*) FROM pg_proc WHERE proname ~ '^(get_all_smaps|pg_meminfo)';

CREATE EXTENSION pg_meminfo SCHEMA elsewhere VERSION '1.0';
SELECT count(*) AS own FROM elsewhere.smap_summary WHERE pid = pg_backend_pid();
-- With an empty search_path
SET search_path = '';
SELECT count(*) AS own FROM elsewhere.smap_summary WHERE pid = pg_catalog.pg_backend_pid();
RESET search_path;

ALTER EXTENSION pg_meminfo SET SCHEMA public;
DROP SCHEMA elsewhere;
SELECT count(*) AS own FROM smap_summary WHERE pid = pg_backend_pid();

-- From the oldest version to this one
ALTER EXTENSION pg_meminfo UPDATE;
SELECT extversion = default_version AS is_newest
FROM pg_extension JOIN pg_available_extensions ON name = extname WHERE extname = 'pg_meminfo';
