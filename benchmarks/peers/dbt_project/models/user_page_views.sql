{# The pairs of the new days, summed over all days, and the pairs whose user has another e-mail now. #}
{{ config(materialized='incremental', incremental_strategy='merge', unique_key=['user_id', 'url'],
          indexes=[{'columns': ['user_id', 'url'], 'unique': true}]) }}
{% if is_incremental() %}
with touched as (
  select user_id, url from {{ ref('user_page_views_daily') }}
  where day >= '{{ var("first") }}' and day < '{{ var("end") }}'
  group by user_id, url
),
summed as (
  select d.user_id, d.url, sum(d.count)::bigint as count, max(d.last_viewed) as last_viewed
  from {{ ref('user_page_views_daily') }} d join touched using (user_id, url)
  group by d.user_id, d.url
),
renamed as (
  select t.user_id, t.url, t.count, t.last_viewed
  from {{ this }} t join {{ ref('users') }} u using (user_id)
  where t.email is distinct from u.email
    and not exists (select from touched where touched.user_id = t.user_id and touched.url = t.url)
),
changed as (select * from summed union all select * from renamed)
select c.user_id, u.email, c.url, c.count, c.last_viewed
from changed c left join {{ ref('users') }} u using (user_id)
{% else %}
select d.user_id, u.email, d.url, d.count, d.last_viewed
from (
  select user_id, url, sum(count)::bigint as count, max(last_viewed) as last_viewed
  from {{ ref('user_page_views_daily') }} group by user_id, url
) d
left join {{ ref('users') }} u using (user_id)
{% endif %}
