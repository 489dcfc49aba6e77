analyze changes
