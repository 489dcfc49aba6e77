-- Pairs that no day has any more.
delete from public.user_page_views v using changes c
where c.old_last is not null and v.user_id = c.user_id
  and public.url_key(v.url) collate "C" = public.url_key(c.url) collate "C"
  and v.count + c.count = 0
