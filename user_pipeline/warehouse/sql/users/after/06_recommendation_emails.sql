update public.page_recommendations r set email = latest.email
from latest
where r.user_id = latest.user_id and r.email is distinct from latest.email
