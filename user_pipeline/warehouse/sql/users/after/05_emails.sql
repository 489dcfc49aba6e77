-- All pairs of the few whose e-mail is another one now.
update public.user_page_views v set email = latest.email
from latest
where latest.email is distinct from latest.known_email
  and v.user_id = latest.user_id and v.email is distinct from latest.email
