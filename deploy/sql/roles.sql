-- Databases and roles of user_pipeline, for PostgreSQL 15 or later. Run it with psql as a role that may create roles
-- and databases (on RDS the master user), connected to any database; running it again, as the same role, changes nothing:
--
--   psql "postgresql://admin@db.example.com/postgres?sslmode=verify-full&sslrootcert=/etc/ssl/rds.pem" \
--     -v ON_ERROR_STOP=1 -f deploy/sql/roles.sql
--
-- There is no password in it. psql's \password sets one without sending it in the clear:
--
--   \password user_pipeline_owner
--
--   role                    may
--   user_pipeline_owner     own both databases: makes and alters their tables (user-pipeline init-databases)
--   user_pipeline_writer    read and change rows in both; no DDL. What the pipeline runs as
--   analyst                 read the analytics database, nothing else, five minutes a statement. For people and dashboards
--   user_pipeline_dagster   own Dagster's own storage, whose tables Dagster makes and migrates itself
--
-- Other names: psql -v staging=… -v analytics=… -v dagster=…

\if :{?staging} \else \set staging staging \endif
\if :{?analytics} \else \set analytics analytics \endif
\if :{?dagster} \else \set dagster dagster \endif

-- What is there already is no news.
set client_min_messages = warning;

select format('create role %I login', name)
from unnest(array['user_pipeline_owner', 'user_pipeline_writer', 'analyst', 'user_pipeline_dagster']) name
where not exists (select from pg_roles where rolname = name) \gexec

-- Whoever is no superuser may hand a database over only to a role it belongs to.
grant user_pipeline_owner, user_pipeline_dagster to current_user;

select format('create database %I owner %I encoding %L template template0', name, owner, 'UTF8')
from (values
  (:'staging', 'user_pipeline_owner'),
  (:'analytics', 'user_pipeline_owner'),
  (:'dagster', 'user_pipeline_dagster')
) as wanted (name, owner)
where not exists (select from pg_database where datname = name) \gexec

-- Without these, every role of the server may connect to every database.
revoke all on database :"staging", :"analytics", :"dagster" from public;
-- The writer copies rows into temporary tables first.
grant connect, temporary on database :"staging", :"analytics" to user_pipeline_writer;
-- Whatever the analyst was granted by hand goes: a temporary table, too, fills the server's disk.
revoke all on database :"staging", :"analytics", :"dagster" from analyst;
grant connect on database :"analytics" to analyst;
-- The server's own database lets every role in. Its owner alone can change that: on RDS and in compose, this administrator.
select format('revoke temporary on database %I from public', datname)
from pg_database where datname = 'postgres' and pg_has_role(datdba, 'usage') \gexec
-- A slip of the hand is refused at once; what the role may do is decided by its grants.
alter role analyst set default_transaction_read_only = on;
-- A query that nobody waits for any more ends, and the rows it has seen can be vacuumed.
alter role analyst set statement_timeout = '5min';

\connect :"staging"
set client_min_messages = warning;
set role user_pipeline_owner;
revoke all on schema public from public;
grant usage on schema public to user_pipeline_writer;
grant select, insert, update, delete, truncate on all tables in schema public to user_pipeline_writer;
alter default privileges in schema public
  grant select, insert, update, delete, truncate on tables to user_pipeline_writer;
-- What the pipeline notes for itself: which files of the lake make up what.
create schema if not exists pipeline;
grant usage on schema pipeline to user_pipeline_writer;
grant select, insert, update, delete, truncate on all tables in schema pipeline to user_pipeline_writer;
alter default privileges in schema pipeline
  grant select, insert, update, delete, truncate on tables to user_pipeline_writer;
-- `user-pipeline recover` goes on with the numbers of the lake's commits.
grant usage, select, update on all sequences in schema pipeline to user_pipeline_writer;
alter default privileges in schema pipeline grant usage, select, update on sequences to user_pipeline_writer;

\connect :"analytics"
set client_min_messages = warning;
set role user_pipeline_owner;
revoke all on schema public from public;
grant usage on schema public to user_pipeline_writer, analyst;
grant select, insert, update, delete, truncate on all tables in schema public to user_pipeline_writer;
alter default privileges in schema public
  grant select, insert, update, delete, truncate on tables to user_pipeline_writer;
grant select on all tables in schema public to analyst;
alter default privileges in schema public grant select on tables to analyst;
create schema if not exists pipeline;
grant usage on schema pipeline to user_pipeline_writer;
grant select, insert, update, delete, truncate on all tables in schema pipeline to user_pipeline_writer;
alter default privileges in schema pipeline
  grant select, insert, update, delete, truncate on tables to user_pipeline_writer;
-- `user-pipeline recover` goes on with the numbers of the lake's commits.
grant usage, select, update on all sequences in schema pipeline to user_pipeline_writer;
alter default privileges in schema pipeline grant usage, select, update on sequences to user_pipeline_writer;
