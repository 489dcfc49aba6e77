-- Pairs that these days had before.
update public.user_page_views v
set count = v.count + c.count, last_viewed = greatest(v.last_viewed, c.new_last)
from changes c
where c.old_last is not null and v.user_id = c.user_id
  and public.url_key(v.url) collate "C" = public.url_key(c.url) collate "C"
