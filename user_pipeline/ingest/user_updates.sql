-- A record of user updates is five fields of RFC 4180 CSV; the text may hold quoted line ends.
with parsed as (
  select
    object, line, text, broken, size,
    -- A record that is no CSV gives five empty strings, as five empty fields do: told apart below.
    regexp_extract(
      text,
      '^("(?:[^"]|"")*"|[^",\r\n]*),("(?:[^"]|"")*"|[^",\r\n]*),("(?:[^"]|"")*"|[^",\r\n]*),("(?:[^"]|"")*"|[^",\r\n]*),("(?:[^"]|"")*"|[^",\r\n]*)\r?\n?$',
      ['updated_at', 'user_id', 'email', 'name', 'environment']
    ) as f
  from lines
),
unquoted as (
  select
    object, line, text, broken, size,
    not broken
      and (concat(f.updated_at, f.user_id, f.email, f.name, f.environment) <> '' or trim(text, e'\r\n') in (',,,,'))
      and not contains(text, chr(0)) as well_formed,
    case when starts_with(f.updated_at, '"') then replace(f.updated_at[2:-2], '""', '"') else f.updated_at end as updated_at_text,
    case when starts_with(f.user_id, '"') then replace(f.user_id[2:-2], '""', '"') else f.user_id end as user_id_text,
    case when starts_with(f.email, '"') then replace(f.email[2:-2], '""', '"') else f.email end as email,
    case when starts_with(f.name, '"') then replace(f.name[2:-2], '""', '"') else f.name end as name,
    case when starts_with(f.environment, '"') then replace(f.environment[2:-2], '""', '"') else f.environment end as environment
  from parsed
),
typed as (
  select
    *,
    moment_of(updated_at_text) as updated_at,
    case when regexp_full_match(user_id_text, '\d+') then try_cast(user_id_text as bigint) end as user_id
  from unquoted
)
select
  object, line, updated_at, user_id, email, name, environment,
  case
    when not well_formed then 'malformed'
    when line = 1 and [lower(trim(x)) for x in [updated_at_text, user_id_text, email, name, environment]]
      = ['updated_at', 'user_id', 'email', 'name', 'environment'] then 'header'
    when updated_at is null then 'invalid_timestamp'
    when updated_at < $first_day or updated_at >= $end_of_range then 'out_of_range'
    when user_id_text = '' then 'missing_user_id'
    when user_id is null then 'invalid_user_id'
    when not is_email(email) then 'invalid_email'
    when is_blank(environment) then 'missing_environment'
  end as reason,
  case when reason is not null then kept_line(text, size, broken) end as text
from typed
