--
-- Who may look: superusers and members of pg_read_all_stats
--
CREATE ROLE regress_meminfo_nobody;
CREATE ROLE regress_meminfo_stats IN ROLE pg_read_all_stats;
CREATE ROLE regress_meminfo_monitor IN ROLE pg_monitor;
CREATE ROLE regress_meminfo_noinherit NOINHERIT IN ROLE pg_read_all_stats;


SET ROLE regress_meminfo_nobody;
DO $$
BEGIN
    PERFORM * FROM get_all_smaps();
EXCEPTION WHEN insufficient_privilege THEN
    RAISE NOTICE '% %', SQLSTATE, SQLERRM;
END
$$;
SELECT count(*) FROM get_all_smaps();
SELECT count(*) FROM pg_meminfo_smaps(pg_backend_pid());
SELECT count(*) FROM smap_summary;
SELECT count(*) FROM pg_meminfo_processes();
SELECT count(*) FROM pg_meminfo;
SELECT count(*) FROM pg_meminfo_mappings;
SELECT count(*) FROM pg_meminfo_rollup(pg_backend_pid());
SELECT count(*) FROM pg_meminfo_private(pg_backend_pid());
SELECT count(*) FROM pg_meminfo_segments;
SELECT count(*) FROM pg_meminfo_cluster;
SELECT count(*) FROM pg_meminfo_host;
SELECT count(*) FROM pg_meminfo_cgroups;
-- Without a call there is nothing to refuse
SELECT count(*) FROM pg_meminfo_smaps(NULL);
RESET ROLE;

SET ROLE regress_meminfo_stats;
SELECT count(*) > 0 AS ok FROM get_all_smaps();
SELECT count(*) > 0 AS ok FROM pg_meminfo_smaps(pg_backend_pid());
SELECT count(*) > 0 AS ok FROM smap_summary;
SELECT count(*) > 0 AS ok FROM pg_meminfo;
SELECT count(*) > 0 AS ok FROM pg_meminfo_mappings WHERE pid = pg_backend_pid();
SELECT count(*) AS ok FROM pg_meminfo_cluster, pg_meminfo_host;
RESET ROLE;

SET ROLE regress_meminfo_monitor;
SELECT count(*) > 0 AS ok FROM get_all_smaps();
SELECT count(*) > 0 AS ok FROM pg_meminfo_smaps(pg_backend_pid());
SELECT count(*) > 0 AS ok FROM smap_summary;
RESET ROLE;

-- A member that does not inherit has the privileges after SET ROLE only
SET ROLE regress_meminfo_noinherit;
SELECT count(*) > 0 AS ok FROM get_all_smaps();
RESET ROLE;

-- A view's owner lends nothing: the functions ask who runs the query
CREATE VIEW owned_by_superuser AS SELECT * FROM get_all_smaps();
GRANT SELECT ON owned_by_superuser TO regress_meminfo_nobody;
SET ROLE regress_meminfo_nobody;
SELECT count(*) FROM owned_by_superuser;
RESET ROLE;

-- SECURITY DEFINER does, as it says
CREATE FUNCTION definer() RETURNS boolean LANGUAGE sql SECURITY DEFINER
    AS 'SELECT count(*) > 0 FROM get_all_smaps()';
SET ROLE regress_meminfo_nobody;
SELECT definer();
RESET ROLE;

-- Refused again and again, in one session
SET ROLE regress_meminfo_nobody;
DO $$
DECLARE
    refused int := 0;
BEGIN
    FOR i IN 1..1000 LOOP
        BEGIN
            PERFORM * FROM get_all_smaps();
        EXCEPTION WHEN insufficient_privilege THEN
            refused := refused + 1;
        END;
    END LOOP;
    RAISE NOTICE 'refused % times', refused;
END
$$;
RESET ROLE;

DROP FUNCTION definer;
DROP VIEW owned_by_superuser;
DROP ROLE regress_meminfo_nobody, regress_meminfo_stats, regress_meminfo_monitor, regress_meminfo_noinherit;
