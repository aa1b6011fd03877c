// What tests/test_feeds.py asks of the shipped rules of what is shown. An element is {name, attributes, children, text}.

import { Items, itemOf, named, within } from "../../static/js/connection/feeds.js"

const element = ({ name, attributes = {}, children = [], text = "", source }) => ({
  localName: name, children: children.map(element), textContent: text, source,
  getAttribute: (key) => attributes[key] ?? null, hasAttribute: (key) => key in attributes,
})

export const ME = "me"

// known: what the page came with; expected: what waits in the outbox. → for each feed {orders: [verb, key, was], fits, isCut}
export function shown(known, expected, hasOlder, feeds) {
  const items = new Items(ME, () => hasOlder)
  for (const one of known) items.know(itemOf(element(one)))
  for (const key of expected) items.expect(key)
  return feeds.map((feed) => {
    const { orders, fits, isCut } = items.apply(element(feed))
    return { orders: orders.map(({ verb, key, was }) => was === undefined ? [verb, key] : [verb, key, was]), fits, isCut }
  })
}

const trees = (html) => JSON.parse(globalThis.parsed(html)).map((tree) => {
  const read = ({ t: name, a: attributes, c: children = [], x: text, s: source }) => ({
    name, attributes, source, text: text ?? children.map(read).map((child) => child.text).join(""), children: children.map(read),
  })
  return element(read(tree))
})

// What a reader shows who applies frames of one feed in turn. → after each: the blocks of the newest answer, by index; null
// where it did not fit
export function grown(frames, feeds) {
  const items = new Items(ME)
  let blocks = {}
  return frames.map((frame) => {
    const [one] = trees(named(frame, feeds))
    const [feed] = one.localName === "chat-answer" ? within(one) : [one]
    const { orders, fits } = items.apply(feed)
    for (const { element: article, pieces = [] } of orders) {
      if (article?.getAttribute("data-author") === "assistant") blocks = blocksOf(article)
      for (const { index, source } of pieces) blocks[index] = source
    }
    return fits ? { feed: feed.getAttribute("feed"), blocks: { ...blocks } } : null
  })
}

function blocksOf(article) {
  const body = article.children.find((one) => one.getAttribute("class") === "body")
  return Object.fromEntries(body.children.map((one) => [one.getAttribute("data-index"), one.source]))
}
