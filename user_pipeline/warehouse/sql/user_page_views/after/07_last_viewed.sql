-- Pairs whose last view was in these days and is there no more: look for it in the days before, latest
-- first. Days after these cannot hold it: their views would have been the last ones.
do $$
declare
  d date := (select end_day from slice);
begin
  create temporary table unresolved on commit drop as
  select c.user_id, c.url
  from changes c join public.user_page_views v
    on v.user_id = c.user_id and public.url_key(v.url) collate "C" = public.url_key(c.url) collate "C"
  where v.last_viewed = c.old_last and (c.new_last is null or c.new_last < c.old_last);
  analyze unresolved;
  while exists (select from unresolved) loop
    select max(day) into d from public.user_page_views_daily where day < d;
    if d is null then
      raise exception 'user_page_views counts views that user_page_views_daily does not have';
    end if;
    update public.user_page_views v set last_viewed = x.last_viewed
    from unresolved n
    join public.user_page_views_daily x on x.day = d and x.user_id = n.user_id and x.url = n.url
    where v.user_id = n.user_id and public.url_key(v.url) collate "C" = public.url_key(n.url) collate "C";
    delete from unresolved n using public.user_page_views_daily x
    where x.day = d and x.user_id = n.user_id and x.url = n.url;
  end loop;
end
$$
