-- A line of page views is one JSON object. DuckDB takes each own key as text, whatever its JSON type, so
-- what must be a string is checked against its JSON type where its text could be something else. Of a key that is
-- there twice the first counts. Further keys are kept as they are.
with parsed as (
  select
    object, line, text, broken, size,
    -- Not UTF-8, not an object, or not JSON: null.
    case when not broken and (text[1] = '{' or starts_with(ltrim(text, e' \t'), '{'))
      then try(from_json(text, '{"ts":"VARCHAR","url":"VARCHAR","environment":"VARCHAR","user_id":"VARCHAR"}'))
    end as j
  from lines
),
typed as (
  select
    object, line, text, broken, size,
    coalesce(text = concat('{"ts": "', j.ts, '", "url": "', j.url, '", "environment": "', j.environment,
      '", "user_id": ', user_id_digits, e'}\n'), false) as is_plain,
    j is not null
      and not contains(concat(j.ts, j.url, j.environment, j.user_id), chr(0))
      -- DuckDB's reader also takes trailing commas, NaN and infinities, which are not JSON: looked for outside of
      -- strings, if at all. There are none in a line that is these four in this order and the user's digits.
      and not case
        when is_plain then false
        when regexp_matches(text, ',\s*[}\]]|[nN][aA][nN]|[iI][nN][fF]') then regexp_matches(
          regexp_replace(text, '"(?:[^"\\]|\\.)*"', '""', 'g'), ',\s*[}\]]|[nN][aA][nN]|[iI][nN][fF]')
        else false end as well_formed,
    moment_of(j.ts) as ts,
    case when regexp_matches(j.url, '^[\[{"tf\d-]') and json_type(text, '$.url') <> 'VARCHAR' then null
      else j.url end as url,
    case when regexp_matches(j.environment, '^[\[{"tf\d-]') and json_type(text, '$.environment') <> 'VARCHAR' then null
      else j.environment end as environment,
    j.user_id as user_id_text,
    try_cast(user_id_digits as bigint) as user_id
  from (select *, case when regexp_full_match(j.user_id, '\d+') then j.user_id end as user_id_digits from parsed)
),
reasoned as (
select
  *,
  case
    when not well_formed then 'malformed'
    when ts is null then 'invalid_timestamp'
    when ts < $first_day or ts >= $end_of_range then 'out_of_range'
    when coalesce(user_id_text, '') = '' then 'missing_user_id'
    when user_id is null then 'invalid_user_id'
    when is_blank(url) then 'missing_url'
    when is_blank(environment) then 'missing_environment'
  end as reason
from typed
)
select
  object, line, ts, url, environment, user_id, reason,
  -- A merge patch (RFC 7396) with null takes a key out.
  case when reason is null and not is_plain then nullif(
    json_merge_patch(text, '{"ts":null,"url":null,"environment":null,"user_id":null}')::varchar, '{}') end as rescued,
  case when reason is not null then kept_line(text, size, broken) end as text
from reasoned
