{{ config(materialized='incremental', incremental_strategy='delete+insert', unique_key='user_id',
          indexes=[{'columns': ['user_id'], 'unique': true}]) }}
select distinct on (user_id) user_id, email, name, updated_at
from (
  select user_id, email, name, updated_at from {{ ref('user_updates') }}
{% if is_incremental() %}
  where day >= '{{ var("first") }}' and day < '{{ var("end") }}'
  union all
  select user_id, email, name, updated_at from {{ this }}
  where user_id in (select user_id from {{ ref('user_updates') }}
                    where day >= '{{ var("first") }}' and day < '{{ var("end") }}')
{% endif %}
) u
order by user_id, updated_at desc, email desc, name desc
