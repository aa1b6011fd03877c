// A monotonic clock (ms since 1970, by the system clock at the page's load). For comparisons within a page; Date.now()
// is for times that are shown, or that outlive the page.
export const steadyClock = () => Math.round(performance.timeOrigin + performance.now())
