update public.user_page_views v set email = latest.email
from latest
where v.user_id = latest.user_id and v.email is distinct from latest.email
