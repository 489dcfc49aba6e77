-- What new days bring for each pair, unless the engine has summed it up and it was copied here: of one day as it
-- lies there, of several days the sum.
do $$
begin
  if to_regclass('pg_temp.together') is not null then
    analyze together;
  elsif (select end_day = first_day + 1 from slice) then
    create temporary view together as
    select user_id, url, count, last_viewed from public.user_page_views_daily
    where day = (select first_day from slice);
  else
    create temporary view together as
    select user_id, url, sum(count)::bigint as count, max(last_viewed) as last_viewed
    from public.user_page_views_daily
    where day >= (select first_day from slice) and day < (select end_day from slice)
    group by user_id, url
    order by user_id, url;
  end if;
end
$$
