// Since 1970 as the browser's clock said when the page began, and what has passed since: nobody can set it. What is
// compared within a page is read here; Date.now() is for what people are shown, and for what outlives the page.
export const steadyClock = () => Math.round(performance.timeOrigin + performance.now())
